"""Facts about a checkpoint, read without its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import transformers

from stars_engine.backends.base import ModelFacts
from stars_engine.config import SamplingParams, TransformersModel
from stars_engine.config.models import Checkpoint
from stars_engine.errors import ModelLoadError
from stars_engine.loading.context import context_len
from stars_engine.loading.models import load_tokenizer, read_config
from stars_engine.loading.sources import hub_token, resolve_source
from stars_engine.tokenization.added_tokens import template_sources

# Keywords of from_pretrained that say how weights are kept. Any other may change the config.
_OF_WEIGHTS = {
    "attn_implementation",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "offload_state_dict",
    "quantization_config",
}


def read_facts(config: TransformersModel) -> ModelFacts | None:
    """Read what `TransformersBackend` would say of itself once loaded.

    Returns:
        The facts; None if only loading tells, for the sake of `model_kwargs`.

    Raises:
        ModelLoadError: There is no such model, or its files cannot be read.
    """
    if not config.model_kwargs.keys() <= _OF_WEIGHTS:
        return None
    tokenizer = load_tokenizer(config)
    if config.model is not None:
        declared = config.model.config
        generation = getattr(config.model, "generation_config", None)  # not every class has one
    else:
        declared = read_config(config)
        generation = _read_generation_config(config, declared)
    template = config.chat_template or "\n".join(template_sources(tokenizer))
    return ModelFacts(
        context_len=context_len(declared, tokenizer),
        has_chat_template=bool(template),
        default_sampling=partial(sampling_of, generation),
        template=template,
    )


def find_end_ids(holders: Iterable[Any], vocab_size: int) -> frozenset[int]:
    """Return the end-of-text ids of the first holder that has some, as one id or a list.

    Some checkpoints name ids that the model has no logit for; it cannot end by those.

    Args:
        holders: Generation config, config and tokenizer, in this order.
        vocab_size: Token ids are below this.
    """
    for holder in holders:
        value = getattr(holder, "eos_token_id", None)
        ids = [value] if isinstance(value, int) else value or []
        known = frozenset(token for token in ids if 0 <= token < vocab_size)
        if known:
            return known
    return frozenset()


@dataclass(frozen=True, slots=True)
class ServedFacts:
    """What the files of a served model's tokenizer say of the model.

    Attributes:
        vocab_size: Token ids are below this.
        end_ids: End-of-text tokens.
        context_len: Tokens of prompt and completion; None if the files do not say.
        default_sampling: Returns what the generation config sets; ours for what it leaves open.
    """

    vocab_size: int
    end_ids: frozenset[int]
    context_len: int | None
    default_sampling: Callable[[], SamplingParams]


def read_served_facts(source: Checkpoint, tokenizer: Any) -> ServedFacts:
    """Read what is known of a served model without its weights.

    A directory may hold the tokenizer alone. The vocabulary is then that of the tokenizer.
    """
    assert source.name_or_path is not None
    declared = generation = None
    with suppress(ModelLoadError):
        declared = read_config(source)
    with suppress(OSError, ValueError):
        generation = transformers.GenerationConfig.from_pretrained(
            resolve_source(source.name_or_path),
            revision=source.revision or "main",
            token=hub_token(source),
        )
    text_config = None if declared is None else declared.get_text_config()
    size = getattr(text_config, "vocab_size", None) or len(tokenizer)
    end_ids = find_end_ids((generation, declared, tokenizer), size)
    limit = None if declared is None else context_len(declared, tokenizer)
    default_sampling = SamplingParams if generation is None else partial(sampling_of, generation)
    return ServedFacts(size, end_ids, limit, default_sampling)


def sampling_of(generation_config: Any) -> SamplingParams:
    """Return what a checkpoint's generation config sets; ours for what it leaves open."""
    given: dict[str, Any] = {}
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        value = getattr(generation_config, name, None)
        if value is not None:
            given[name] = value
    if getattr(generation_config, "do_sample", None) is False:
        given["temperature"] = 0  # whatever is set for samples
    if given.get("top_k") == 0:  # how transformers says: keep all
        given["top_k"] = None
    limit = getattr(generation_config, "max_new_tokens", None)
    if limit is not None:
        given["max_tokens"] = limit
    stop = getattr(generation_config, "stop_strings", None)
    if stop:
        given["stop"] = stop
    least = getattr(generation_config, "min_new_tokens", None)
    if least is not None:
        most = limit or SamplingParams.model_fields["max_tokens"].default
        given["min_tokens"] = min(least, most)
    return SamplingParams(**given)


def _read_generation_config(config: TransformersModel, declared: Any) -> Any:
    assert config.name_or_path is not None
    source = resolve_source(config.name_or_path)
    try:
        return transformers.GenerationConfig.from_pretrained(
            source, revision=config.revision or "main", token=hub_token(config)
        )
    except OSError:  # a checkpoint need not bring one
        return transformers.GenerationConfig.from_model_config(declared)
