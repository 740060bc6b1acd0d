"""Where drafts come from, and what every loadable checkpoint has in common."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.schema import Schema

# Names that stand for the weights inside the package.
EMBEDDED_LM = "stars:embedded-lm"
EMBEDDED_REWARD = "stars:embedded-reward"

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]

_DEVICES = r"auto|cpu|mps|cuda(:\d+)?"

_RESERVED_KWARGS = {
    "revision": "revision",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "device_map": "device_map",
    "trust_remote_code": "trust_remote_code",
    "use_safetensors": "",
    "pretrained_model_name_or_path": "name_or_path",
}


class Checkpoint(Schema):
    """A model on the hub, in a local directory, or already in memory."""

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
        description="where the tokenizer is, if not beside the weights",
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit on the hub", examples=["main"]
    )
    dtype: Dtype = Field(
        default="auto",
        description="of weights and arithmetic; auto: the checkpoint's own, float32 on a CPU; "
        "float64 is slow, and leaves no rounding by which batches could differ",
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
        description="spread over devices by accelerate, instead of `device`",
        examples=["auto"],
    )
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="further keywords of from_pretrained: quantization_config, attn_implementation",
        examples=[{"attn_implementation": "sdpa"}],
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with the checkpoint"
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(_DEVICES, device, re.ASCII):
            raise ValueError("a device is 'auto', 'cpu', 'mps', 'cuda' or 'cuda:0', 'cuda:1', ...")
        return device

    @field_validator("model_kwargs")
    @classmethod
    def _no_double(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        for name in kwargs.keys() & _RESERVED_KWARGS.keys():
            field = _RESERVED_KWARGS[name]
            cure = f"use the field `{field}`" if field else "only safetensors weights are read"
            raise ValueError(f"{name!r} cannot be given here; {cure}")
        return kwargs

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name_or_path is None) == (self.model is None):
            raise ValueError(
                "give either name_or_path (a hub name or directory) or model (a loaded model with "
                f"its tokenizer); got name_or_path={self.name_or_path!r} and "
                f"{'a' if self.model is not None else 'no'} model"
            )
        if self.model is not None and self.tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer; pass tokenizer=... beside it")
        if self.model is None and self.tokenizer is not None:
            raise ValueError(
                "tokenizer=... goes with a loaded model and would be ignored beside name_or_path; "
                "use tokenizer_name_or_path, or pass model=... too"
            )
        if self.model is not None and self.needs_loading_options():
            raise ValueError(
                f"{', '.join(self.needs_loading_options())} only act when a checkpoint is loaded; "
                "a model in memory is used as it is"
            )
        if self.device_map is not None and self.device != "auto":
            raise ValueError(
                f"device={self.device!r} and device_map={self.device_map!r} both place the model; "
                "give one of them"
            )
        return self

    def needs_loading_options(self) -> list[str]:
        """Names of the fields that were set and only act while a checkpoint is loaded."""
        loading = {"revision", "dtype", "device", "device_map", "model_kwargs", "trust_remote_code"}
        loading |= {"tokenizer_name_or_path", "adapter_path"}
        return sorted(self.model_fields_set & loading)

    @property
    def is_live(self) -> bool:
        """True if the config holds an object that no file can hold."""
        return self.model is not None


class TransformersModel(Checkpoint):
    """A causal language model run in this process by transformers."""

    kind: Literal["transformers"] = "transformers"
    adapter_path: str | None = Field(
        default=None, min_length=1, description="a PEFT adapter: local directory or hub name"
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="a Jinja chat template that replaces the tokenizer's own",
    )
