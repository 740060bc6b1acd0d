"""Config objects of models that vLLM runs in this process."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from stars_engine.config.loading import check_name, check_no_code, check_values
from stars_engine.config.parts import Part


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

    @property
    def shown_name(self) -> str:
        """See `Part`."""
        return self.name_or_path


class VLLMModel(VLLMCheckpoint):
    """A causal language model that vLLM runs in this process."""

    kind: Literal["vllm"] = "vllm"
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="a Jinja chat template that replaces the tokenizer's own",
    )
