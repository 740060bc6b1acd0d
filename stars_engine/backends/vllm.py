"""A language model that vLLM runs in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.codec_model import CodecModel, with_chat_template
from stars_engine.backends.facts import read_served_facts
from stars_engine.backends.server_requests import (
    DraftInParts,
    ShortCompletionError,
    check_supported,
    refuse_entropies,
)
from stars_engine.config import SamplingParams
from stars_engine.config.vllm import VLLMModel
from stars_engine.errors import GenerationError, Interrupted
from stars_engine.loading.models import load_tokenizer
from stars_engine.loading.vllm import load_vllm, vllm_source
from stars_engine.remote.dialects import Completion, CompletionRequest, dialect_named
from stars_engine.tokenization.codec import Codec

_DIALECT = dialect_named("vllm")


class VLLMBackend(CodecModel):
    """A `LanguageModel` over an engine of vLLM: all candidates of a step are one batch.

    Args:
        config: What to load.

    Raises:
        ModelLoadError: vLLM cannot load the model.
        MissingExtraError: vLLM is not installed.
    """

    path = "vLLM in this process"

    def __init__(self, config: VLLMModel) -> None:
        source = vllm_source(config)
        tokenizer = with_chat_template(load_tokenizer(source), config.chat_template)
        self.codec = Codec(tokenizer)
        facts = read_served_facts(source, tokenizer)
        self.vocab_size, self.end_ids = facts.vocab_size, facts.end_ids
        self.default_sampling = facts.default_sampling
        self.llm = load_vllm(config, "generate")
        limit = self.llm.llm_engine.model_config.max_model_len
        self.context_len: int | None = int(limit)
        self._interrupted = False

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft | GenerationError]:
        """Draft all candidates together; see `LanguageModel`."""
        found: dict[int, Draft | GenerationError] = {}
        drafts: dict[int, DraftInParts] = {}
        for index, request in enumerate(requests):
            try:
                refuse_entropies(request)
            except GenerationError as error:
                found[index] = error
            else:
                stop_ids = {*self.end_ids, *request.sampling.stop_token_ids}
                drafts[index] = DraftInParts(request, stop_ids)
        while True:
            asked = {
                index: each
                for index, parts in drafts.items()
                if index not in found and (each := parts.next_request()) is not None
            }
            if not asked:
                break
            completions = self._complete(list(asked.values()))
            for (index, each), completion in zip(asked.items(), completions, strict=True):
                try:
                    drafts[index].add(each, completion)
                except ShortCompletionError as error:
                    found[index] = _short(error)
        return [found.get(index) or drafts[index].draft for index in range(len(requests))]

    def check_grammar(self, sampling: SamplingParams) -> None:
        """Refuse every setting that vLLM cannot follow across segments, not only grammars.

        Raises:
            ConfigError: vLLM cannot follow a setting.
        """
        check_supported(sampling, _DIALECT)

    def interrupt(self) -> None:
        """Give up drafting for good, before the next batch; may be called from any thread."""
        self._interrupted = True

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        return {
            "decoding": self.path,
            "dtype": str(self.llm.llm_engine.model_config.dtype),
            "context": f"{self.context_len} tokens",
            "vocabulary": str(self.vocab_size),
        }

    def _complete(self, asked: Sequence[CompletionRequest]) -> list[Completion]:
        from vllm import SamplingParams as VLLMSampling  # noqa: PLC0415 - an extra of its own
        from vllm.inputs import TokensPrompt  # noqa: PLC0415

        if self._interrupted:
            raise Interrupted
        params = []
        for each in asked:
            given: dict[str, Any] = _DIALECT.body(each, None)["sampling_params"]
            given["logit_bias"] = dict(each.logit_bias) or None
            params.append(VLLMSampling(**given))
        prompts = [TokensPrompt(prompt_token_ids=list(each.token_ids)) for each in asked]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [
            Completion(
                tuple(output.outputs[0].token_ids),
                ended=output.outputs[0].finish_reason == "stop",
                num_prompt_tokens=len(output.prompt_token_ids),
                num_cached_tokens=output.num_cached_tokens or 0,
            )
            for output in outputs
        ]


def _short(error: ShortCompletionError) -> GenerationError:
    asked, found = error.asked, error.completion
    return GenerationError(
        f"vLLM drew {len(found.token_ids)} of {asked.max_tokens} tokens after a prefix of "
        f"{len(asked.token_ids)} tokens. Hint: raise context_len, or set stop_token_ids if the "
        "text ended with a token that the tokenizer does not name as end of text"
    )
