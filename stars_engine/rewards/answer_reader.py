"""How a reward model reads prompt and answer: as token ids, through a template, as text."""

from __future__ import annotations

from collections.abc import Sequence

from stars_engine.chat.answers import encode_answer, frame
from stars_engine.chat.template import Rendered, encode_rendered, has_template
from stars_engine.config.rewards.answers import ReadsAnswers
from stars_engine.errors import ModelLoadError
from stars_engine.kv_cache.cache_entry import common_prefix_len
from stars_engine.rewards.encoding import EncodedInput, InputReader, TextTemplate
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardInput, RewardPrompt

_MAX_REMEMBERED = 256  # encoded prompts


class AnswerReader(InputReader):
    """Encodes prompts and answers that are not divided into steps.

    Args:
        config: How they are read.
        codec: The classifier's tokenizer.
        name: The name of the reward, for messages.
        max_tokens: The context length; None for no limit.
        reads_ids: Whether answers are read as the language model's token ids.
        suffix_ids: Tokens at the end of each input.
    """

    def __init__(
        self,
        config: ReadsAnswers,
        codec: Codec,
        *,
        name: str,
        max_tokens: int | None,
        reads_ids: bool,
        suffix_ids: Sequence[int] = (),
    ) -> None:
        super().__init__(config, codec, name=name, max_tokens=max_tokens)
        self._config = config
        self._template = TextTemplate(config.template, codec) if config.template else None
        self._reads_ids, self._suffix_ids = reads_ids, list(suffix_ids)
        self._beginnings: dict[RewardPrompt, list[int]] = {}

    @property
    def about(self) -> str:
        """A readable description."""
        if self._template is not None:
            return "text, through the config's template"
        if has_template(self._codec) and self._config.read != "ids":
            answer = "answers as token ids" if self._reads_ids else "text"
            return f"{answer}, through its own chat template"
        if self._reads_ids:
            return "the language model's token ids (same tokenizer)"
        return "text, through its own tokenizer"

    def read(self, item: RewardInput, *, each_token: bool = False) -> EncodedInput:
        """Encode prompt and answer.

        Args:
            item: Prompt and answer.
            each_token: Whether to mark each token of the answer; if not, only the last one is read.

        Raises:
            RewardError: They are too long; see `fit`.
        """
        config = self._config
        ends = config.end_of_turn_on_final if item.finished else config.end_of_turn_on_partial

        def encode(prompt: RewardPrompt) -> EncodedInput:
            ids = self._encode(prompt, item, ends=ends)
            if not each_token:
                return EncodedInput(ids)
            # Tokens at the border may depend on both sides, so the answer begins where the row
            # differs from the prompt alone.
            start = common_prefix_len(self._beginning(prompt), ids)
            return EncodedInput(ids, tuple(range(min(start, len(ids) - 1), len(ids))))

        return self.fit(item.prompt, encode)

    def _beginning(self, prompt: RewardPrompt) -> list[int]:
        """Encode a prompt with an empty answer."""
        if prompt not in self._beginnings:
            if len(self._beginnings) >= _MAX_REMEMBERED:
                self._beginnings.clear()
            empty = RewardInput(prompt, "", ())
            self._beginnings[prompt] = self._encode(prompt, empty, ends=False)
        return self._beginnings[prompt]

    def _encode(self, prompt: RewardPrompt, item: RewardInput, *, ends: bool) -> list[int]:
        if self._template is not None:
            ids = self._template.encode(prompt.text, item.text, with_rest=ends)
        elif has_template(self._codec) and self._config.read != "ids":
            ids = self._encode_chat(prompt, item, ends=ends)
        elif self._reads_ids:
            before: Sequence[int] | None = prompt.token_ids
            if before is None:
                before = self._codec.encode_prompt(prompt.text)
            return [*before, *item.token_ids] or self._codec.empty_prompt()
        else:
            joint = "\n\n" if prompt.messages is not None else ""
            ids = self._codec.encode_prompt(prompt.text + joint + item.text)
        if self._suffix_ids and ids[-len(self._suffix_ids) :] != self._suffix_ids:
            ids = [*ids, *self._suffix_ids]
        return ids or self._codec.empty_prompt()

    def _encode_chat(self, prompt: RewardPrompt, item: RewardInput, *, ends: bool) -> list[int]:
        messages, kwargs = self.conversation(prompt), self._template_kwargs
        if not self._reads_ids:
            return encode_answer(
                self._codec, messages, item.text, end_of_turn=ends, template_kwargs=kwargs
            )
        head, tail = frame(self._codec, messages, template_kwargs=kwargs)
        ids = [*encode_rendered(self._codec, head), *item.token_ids]
        return [*ids, *encode_rendered(self._codec, Rendered(tail, head.mark))] if ends else ids


def reads_ids(config: ReadsAnswers, codec: Codec, lm_fingerprint: str | None, name: str) -> bool:
    """Return whether answers are read as the language model's token ids.

    Args:
        config: How answers are read.
        codec: The classifier's tokenizer.
        lm_fingerprint: Fingerprint of the language model's tokenizer; None if unknown.
        name: The name of the reward, for messages.

    Raises:
        ModelLoadError: The config asks for ids, and the tokenizers differ.
    """
    if config.read == "ids":
        if lm_fingerprint not in (None, codec.fingerprint()):
            raise ModelLoadError(
                f"read='ids' needs the language model's tokenizer, and {name} has a different "
                "one. Hint: use read='text' or read='auto'"
            )
        return True
    shares = lm_fingerprint is not None and lm_fingerprint == codec.fingerprint()
    return shares and config.read == "auto" and config.template is None
