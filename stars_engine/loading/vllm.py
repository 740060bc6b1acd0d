"""Load models with vLLM."""

from __future__ import annotations

from typing import Any

from stars_engine.config.models import Checkpoint
from stars_engine.config.vllm import VLLMCheckpoint
from stars_engine.errors import ModelLoadError, needs_extra
from stars_engine.loading.sources import first_line, resolve_source
from stars_engine.redaction import MASK, masked, redact, redacted_cause, unseal


def vllm_source(config: VLLMCheckpoint) -> Checkpoint:
    """Return the source of a model's tokenizer and config files."""
    return Checkpoint(name_or_path=config.name_or_path, revision=config.revision)


def load_vllm(config: VLLMCheckpoint, runner: str) -> Any:
    """Start an engine of vLLM in this process.

    Args:
        config: The checkpoint.
        runner: "generate" or "pooling".

    Raises:
        ModelLoadError: vLLM cannot load the model, or a secret is missing because the config was
            pickled.
        MissingExtraError: vLLM is not installed.
    """
    if MASK in config.secrets:
        raise ModelLoadError(
            f"engine_kwargs={masked(config.engine_kwargs)}: a secret is missing, because pickles "
            "do not contain secrets. Hint: set it again with .replace(engine_kwargs=...)"
        )
    with needs_extra("vllm"):
        import vllm  # noqa: PLC0415 - an extra of its own
    arguments: dict[str, Any] = {
        "dtype": config.dtype,
        "revision": config.revision,
        "max_model_len": config.context_len,
        "tensor_parallel_size": config.tensor_parallel_size,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enable_prefix_caching": True,
        **unseal(config.engine_kwargs),
    }
    try:
        return vllm.LLM(resolve_source(config.name_or_path), runner=runner, **arguments)
    except Exception as error:  # noqa: BLE001 - libraries fail in many ways
        reason = redact(first_line(error), config.secrets)
        raise ModelLoadError(
            f"vLLM could not load {config.name_or_path!r}: {reason}. Hint: check the name and the "
            "log of vLLM; gpu_memory_utilization is the share of the GPU for each model"
        ) from redacted_cause(error, config.secrets)
