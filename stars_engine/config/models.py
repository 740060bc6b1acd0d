"""Language models, and the common base of all checkpoints that can be loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    FieldSerializationInfo,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)

from stars_engine.config.loading import check_keywords, check_name, check_no_code, check_values
from stars_engine.config.parts import Part, objects_in_keywords
from stars_engine.problems import Problem
from stars_engine.redaction import DIGESTS, MASK, digest, digested, emptied, masked, secrets_in

logger = logging.getLogger(__name__)

# Names of the weights inside the package.
EMBEDDED_LM = "stars:embedded-lm"
EMBEDDED_REWARD = "stars:embedded-reward"
EMBEDDED_VALUE = "stars:embedded-value"  # a head for the language model

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]

_DEVICES = r"auto|cpu|mps|cuda(:\d+)?"


class Checkpoint(Part):
    """A model on the hub, in a local directory, or already in memory.

    Secrets (`token`, and values in `model_kwargs` that look like secrets) are masked in
    representations and dumps, and are not written to files or pickles.
    """

    written_as: ClassVar[str] = "name_or_path"
    hints: ClassVar[dict[str, str]] = dict.fromkeys(
        ("use_auth_token", "auth_token", "hf_token", "api_key"),
        "use the field `token` for a hub token",
    )

    name_or_path: str | None = Field(
        default=None,
        min_length=1,
        description="a hub name or a local directory with safetensors weights",
        examples=["Qwen/Qwen2.5-1.5B-Instruct"],
    )
    model: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="a loaded transformers model, instead of name_or_path",
    )
    tokenizer: Any = Field(
        default=None, exclude=True, repr=False, description="the loaded model's tokenizer"
    )
    tokenizer_name_or_path: str | None = Field(
        default=None,
        min_length=1,
        description="source of the tokenizer, if it is not stored with the weights",
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit on the hub", examples=["main"]
    )
    token: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="hub token; None uses that of HF_TOKEN or of `hf auth login`",
    )
    dtype: Dtype = Field(
        default="auto",
        description="dtype of weights and arithmetic; auto uses the checkpoint's dtype, or float32 "
        "on a CPU; float64 is slow, but has no rounding differences between batches",
        examples=["bfloat16"],
    )
    device: str = Field(
        default="auto",
        description="auto (cuda, then mps, then cpu), cpu, mps, cuda or cuda:N",
        examples=["cuda:0"],
        json_schema_extra={"pattern": f"^({_DEVICES})$"},
    )
    device_map: str | dict[str, Any] | None = Field(
        default=None,
        description="device map for accelerate, instead of `device`",
        examples=["auto"],
    )
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="further keywords for from_pretrained, such as quantization_config or "
        "attn_implementation",
        examples=[{"attn_implementation": "sdpa"}],
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with the checkpoint"
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(_DEVICES, device, re.ASCII):
            raise ValueError(
                "allowed: 'auto', 'cpu', 'mps', 'cuda' or 'cuda:0', 'cuda:1', .... Hint: use 'auto'"
            )
        return device

    @model_validator(mode="before")
    @classmethod
    def _token_has_a_field(cls, values: Any) -> Any:
        """Move a token from the keywords, where transformers expects it, to its field."""
        keywords = values.get("model_kwargs") if isinstance(values, Mapping) else None
        if not isinstance(keywords, Mapping) or not isinstance(
            keywords.get("token"), str | SecretStr
        ):
            return values
        others = {name: keywords[name] for name in keywords if name != "token"}
        given = SecretStr(_plain(keywords["token"]))
        if _plain(values.get("token")) not in (None, _plain(given)):
            raise ValueError("token and model_kwargs['token'] differ. Hint: give one of them")
        return {**values, "model_kwargs": others, "token": given}

    @field_validator("name_or_path", "tokenizer_name_or_path", "revision")
    @classmethod
    def _names_are_names(cls, name: str | None) -> str | None:
        return check_name(name)

    @field_validator("token")
    @classmethod
    def _token_is_no_mask(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None:
            check_values([token])
            if not token.get_secret_value().isprintable() or " " in token.get_secret_value():
                raise ValueError("a token consists of printable characters without spaces")
        return token

    @field_validator("device_map")
    @classmethod
    def _device_map_can_be_written(cls, value: Any) -> Any:
        return check_values(value)

    @field_validator("model_kwargs")
    @classmethod
    def _keywords_are_allowed(cls, keywords: dict[str, Any]) -> dict[str, Any]:
        return check_keywords(keywords)

    @model_validator(mode="after")
    def _no_code_unasked(self) -> Self:
        if not self.trust_remote_code:
            check_no_code(self.model_kwargs)
        return self

    @field_serializer("token")
    def _token_masked(self, token: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        if token is None:
            return None
        return digest(token) if info.context is DIGESTS else MASK

    @field_serializer("model_kwargs", "device_map")
    def _secrets_masked(self, value: Any, info: FieldSerializationInfo) -> Any:
        return digested(value) if info.context is DIGESTS else masked(value)

    @property
    def secrets(self) -> list[str]:
        """The secrets in the config, which must not appear in messages."""
        return list(secrets_in([self.token, self.model_kwargs, self.device_map]))

    def __getstate__(self) -> dict[Any, Any]:
        """Return the state to pickle, without secrets."""
        state = super().__getstate__()
        if not self.secrets:
            return state
        logger.warning(
            "The pickle of a %s does not contain its secrets; when it is loaded, the hub token is "
            "that of HF_TOKEN or of `hf auth login`",
            type(self).__name__,
        )
        values = {**state["__dict__"], "token": None}
        for name in ("model_kwargs", "device_map"):
            values[name] = emptied(values[name])
        own = {name for name in state["__pydantic_fields_set__"] if name != "token"}
        return {**state, "__dict__": values, "__pydantic_fields_set__": own}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name_or_path is None) == (self.model is None):
            raise ValueError(
                "give either name_or_path (a hub name or directory) or model (a loaded model with "
                f"its tokenizer); got name_or_path={self.name_or_path!r} and "
                f"{'a' if self.model is not None else 'no'} model. Hint: set one of them"
            )
        if self.model is not None and self.tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer. Hint: also pass tokenizer=...")
        if self.model is None and self.tokenizer is not None:
            raise ValueError(
                "tokenizer=... is for a loaded model and has no effect with name_or_path. Hint: "
                "use tokenizer_name_or_path, or also pass model=..."
            )
        if self.model is not None and self.needs_loading_options():
            raise ValueError(
                f"{', '.join(self.needs_loading_options())} only affect the loading of a "
                "checkpoint, not a model in memory. Hint: leave them out"
            )
        if self.device_map is not None and self.device != "auto":
            raise ValueError(
                f"device={self.device!r} and device_map={self.device_map!r} both place the model. "
                "Hint: give one of them"
            )
        return self

    def needs_loading_options(self) -> list[str]:
        """Return the names of the given fields that only affect the loading of a checkpoint."""
        loading = {"revision", "dtype", "device", "device_map", "model_kwargs", "trust_remote_code"}
        loading |= {"token", "tokenizer_name_or_path", "adapter_path", "gguf_file"}
        return sorted(self.model_fields_set & loading)

    @property
    def live_fields(self) -> frozenset[str]:
        """See `Part`."""
        return frozenset() if self.model is None else frozenset(("model", "tokenizer"))

    @property
    def shown_name(self) -> str:
        """See `Part`."""
        return self.name_or_path or "in memory"

    def unwritable(self) -> Iterator[Problem]:
        """See `Part`."""
        yield from super().unwritable()
        if self.token is not None:
            yield Problem(
                "token",
                "is a secret, which files cannot contain; leave it out of the file (HF_TOKEN and "
                "`hf auth login` provide a default) and set it in code with .replace(token=...)",
            )
        yield from objects_in_keywords(self, "model_kwargs", "device_map")


class TransformersModel(Checkpoint):
    """A causal language model that transformers runs in this process."""

    kind: Literal["transformers"] = "transformers"
    adapter_path: str | None = Field(
        default=None, min_length=1, description="a PEFT adapter: local directory or hub name"
    )
    gguf_file: str | None = Field(
        default=None,
        min_length=1,
        description="name of a GGUF file in name_or_path, whose weights are dequantized when they "
        "are loaded; its tokenizer and chat template are used (package gguf)",
        examples=["model-q4_k_m.gguf"],
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="a Jinja chat template that replaces the tokenizer's own",
    )

    @field_validator("adapter_path", "gguf_file")
    @classmethod
    def _adapter_has_a_name(cls, name: str | None) -> str | None:
        return check_name(name)


def _plain(token: Any) -> Any:
    return token.get_secret_value() if isinstance(token, SecretStr) else token
