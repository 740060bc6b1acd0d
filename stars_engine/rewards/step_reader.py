"""How a process reward model reads the steps of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from stars_engine.chat.answers import frame
from stars_engine.chat.template import Rendered, encode_rendered, has_template
from stars_engine.config.rewards.process import ScoresSteps
from stars_engine.errors import ModelLoadError
from stars_engine.rewards.encoding import EncodedInput, InputReader, TextTemplate
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardInput, RewardPrompt


class StepReader(InputReader):
    """Splits answers into steps and puts a marker after each.

    Args:
        config: The steps and their marks.
        codec: The reward model's tokenizer.
        name: The name of the reward, for messages.
        max_tokens: The context length; None for no limit.
    """

    def __init__(
        self, config: ScoresSteps, codec: Codec, *, name: str, max_tokens: int | None
    ) -> None:
        super().__init__(config, codec, name=name, max_tokens=max_tokens)
        self._config = config
        self._convention = convention = config.resolved()
        assert convention.marker is not None
        self._marker = one_token("marker", convention.marker, codec, name)
        text = convention.template
        if text is None and not has_template(codec):
            text = "{prompt}{completion}"
        self._template = None if text is None else TextTemplate(text, codec)

    @property
    def about(self) -> str:
        """A readable description."""
        how = "its own chat template" if self._template is None else "a template"
        return f"text, through {how}, {self._convention.marker!r} after each step"

    def steps(self, item: RewardInput) -> list[str]:
        """Return the steps of an answer that are to be scored."""
        separator = self._convention.step_separator
        assert separator is not None
        steps = item.text.split(separator)
        if not item.finished and not self._config.score_unfinished:
            steps = steps[:-1]
        return [step for step in steps if step.strip()]

    def read(self, item: RewardInput) -> EncodedInput:
        """Encode prompt and steps; the marks of the row are the markers.

        Raises:
            RewardError: Prompt and steps are too long; see `fit`.
        """
        steps = self.steps(item)
        return self.fit(item.prompt, lambda prompt: self._encode(prompt, steps))

    def _encode(self, prompt: RewardPrompt, steps: Sequence[str]) -> EncodedInput:
        """Encode each step separately, so that the text of a step cannot move a marker."""
        first, *others = steps or [""]
        ids = [*self._encode_beginning(prompt, first), self._marker]
        marks = [len(ids) - 1]
        between = self._convention.after_marker or ""
        for step in others:
            ids += [*self._codec.encode_continuation(between + step), self._marker]
            marks.append(len(ids) - 1)
        return EncodedInput(ids, tuple(marks))

    def _encode_beginning(self, prompt: RewardPrompt, step: str) -> list[int]:
        if self._template is not None:
            return self._template.encode(prompt.text, step, with_rest=False)
        messages, kwargs = self.conversation(prompt), self._template_kwargs
        head, _ = frame(self._codec, messages, template_kwargs=kwargs)
        return encode_rendered(self._codec, Rendered(head.text + step, head.mark))


def one_token(field: str, text: str, codec: Codec, name: str) -> int:
    """Return the id of an added token, or of a text that encodes to one token.

    Raises:
        ModelLoadError: The text is not one token.
    """
    if text in codec.reserved_tokens:
        token: int = codec.tokenizer.convert_tokens_to_ids(text)
        return token
    for ids in (codec.encode_continuation(text), codec.encode(text)):
        if len(ids) == 1:
            return ids[0]
    raise ModelLoadError(
        f"{field}={text!r} is {len(codec.encode_continuation(text))} tokens of "
        f"{name}; it must be one. Hint: use the {field} that the model was trained with, "
        "or the convention of its family"
    )
