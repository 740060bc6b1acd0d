"""Config objects of models that vLLM runs in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, FieldSerializationInfo, field_serializer, field_validator

from stars_engine.config.loading import check_name, check_no_code, check_values
from stars_engine.config.parts import Part, objects_in_keywords
from stars_engine.problems import Problem
from stars_engine.redaction import DIGESTS, digested, emptied, masked, secrets_in

logger = logging.getLogger(__name__)


class VLLMCheckpoint(Part):
    """A checkpoint that vLLM loads in this process (extra `vllm`)."""

    hints: ClassVar[dict[str, str]] = {
        "max_model_len": "use context_len",
        "model": "use name_or_path",
        "device": "vLLM chooses the device; see its environment variables",
    }

    name_or_path: str = Field(
        min_length=1,
        description="a hub name or a local directory",
        examples=["Qwen/Qwen2.5-1.5B-Instruct"],
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit on the hub", examples=["main"]
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype of weights and arithmetic", examples=["bfloat16"]
    )
    context_len: int | None = Field(
        default=None,
        ge=2,
        description="tokens of prompt and answer at most; None uses the model's limit",
        examples=[8192],
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="GPUs that share each layer", examples=[2]
    )
    gpu_memory_utilization: float = Field(
        default=0.45,
        gt=0,
        le=1,
        description="share of a GPU's memory for this model; language model and reward model share "
        "the GPU",
        examples=[0.45],
    )
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="further arguments of vllm.LLM",
        examples=[{"block_size": 16}],
    )

    @field_validator("name_or_path", "revision")
    @classmethod
    def _names_are_names(cls, name: str | None) -> str | None:
        return check_name(name)

    @field_validator("engine_kwargs")
    @classmethod
    def _arguments_are_allowed(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        check_no_code(arguments)
        known = sorted({"model", "runner", "tokenizer"} & arguments.keys())
        if known:
            raise ValueError(f"{', '.join(known)} cannot be set here; use the fields of the config")
        checked: dict[str, Any] = check_values(arguments)
        return checked

    @field_serializer("engine_kwargs")
    def _secrets_masked(self, value: Any, info: FieldSerializationInfo) -> Any:
        return digested(value) if info.context is DIGESTS else masked(value)

    @property
    def secrets(self) -> list[str]:
        """The secrets in the config, which must not appear in messages."""
        return list(secrets_in(self.engine_kwargs))

    @property
    def shown_name(self) -> str:
        """See `Part`."""
        return self.name_or_path

    def unwritable(self) -> Iterator[Problem]:
        """See `Part`."""
        yield from super().unwritable()
        yield from objects_in_keywords(self, "engine_kwargs")

    def __getstate__(self) -> dict[Any, Any]:
        """Return the state to pickle, without secrets."""
        state = super().__getstate__()
        if not self.secrets:
            return state
        logger.warning(
            "The pickle of a %s does not contain its secrets. Hint: set HF_TOKEN where it is "
            "loaded, or set them again with .replace(engine_kwargs=...)",
            type(self).__name__,
        )
        values = state["__dict__"]
        values = {**values, "engine_kwargs": emptied(values["engine_kwargs"])}
        return {**state, "__dict__": values}


class VLLMModel(VLLMCheckpoint):
    """A causal language model that vLLM runs in this process."""

    kind: Literal["vllm"] = "vllm"
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="a Jinja chat template that replaces the tokenizer's own",
    )
