"""How a language model as judge is asked about an answer."""

from __future__ import annotations

from stars_engine.chat.template import Rendered, encode_rendered, has_template, render
from stars_engine.config.rewards.yes_no import AsksYesNo
from stars_engine.errors import ModelLoadError
from stars_engine.messages import Message
from stars_engine.rewards.encoding import EncodedInput, InputReader, TextTemplate
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardInput, RewardPrompt


class JudgeReader(InputReader):
    """Encodes the question to the judge.

    Args:
        config: The question.
        codec: The judge's tokenizer.
        name: The name of the reward, for messages.
        max_tokens: The context length; None for no limit.
    """

    def __init__(
        self, config: AsksYesNo, codec: Codec, *, name: str, max_tokens: int | None
    ) -> None:
        super().__init__(config, codec, name=name, max_tokens=max_tokens)
        self._judging = judging = config.resolved()
        self._template = None
        if judging.template is not None:
            self._template = TextTemplate(self._with_policy(judging.template), codec)

    @property
    def about(self) -> str:
        """A readable description."""
        how = "its own chat template" if self._template is None else "a template"
        judging = self._judging
        return f"text, through {how}; {judging.positive!r} against {judging.negative!r}"

    def read(self, item: RewardInput) -> EncodedInput:
        """Encode the question to the judge.

        Raises:
            RewardError: It is too long; see `fit`.
        """
        return self.fit(item.prompt, lambda prompt: EncodedInput(self._encode(prompt, item.text)))

    def _encode(self, prompt: RewardPrompt, completion: str) -> list[int]:
        if self._template is not None:
            ids = self._template.encode(prompt.text, completion, with_rest=True)
            shown = self._judging.template or ""
        else:
            rendered = self._ask(prompt, completion)
            ids, shown = encode_rendered(self._codec, rendered), rendered.text
        prefix = self._judging.answer_prefix
        if prefix and not shown.endswith(prefix):
            ids = [*ids, *self._codec.encode_continuation(prefix, parse=True)]
        return ids

    def _ask(self, prompt: RewardPrompt, completion: str) -> Rendered:
        """Render the instruction as a user message; without one, the conversation and answer."""
        instruction = self._judging.instruction
        if instruction is None:
            turns = self.conversation(prompt)
            turns = (*turns, Message(role="assistant", content=completion))
        else:
            # In this order, because the inserted text may itself contain a placeholder.
            before, _, after = self._with_policy(instruction).partition("{completion}")
            content = before.replace("{prompt}", prompt.text) + completion + after
            turns = (Message(role="user", content=content),)
        return render(
            self._codec,
            turns,
            add_generation_prompt=True,
            template_kwargs=self._template_kwargs,
        )

    def _with_policy(self, text: str) -> str:
        return text.replace("{policy}", self._judging.policy or "")


def check_has_template(config: AsksYesNo, codec: Codec, name: str) -> None:
    """Check that there is a template for the question.

    Raises:
        ModelLoadError: The config sets no template, and the judge has no chat template.
    """
    if config.resolved().template is None and not has_template(codec):
        raise ModelLoadError(
            f"{name} has no chat template. Hint: give the judge's whole input as "
            "template='...{prompt}...{completion}...'"
        )


def label_words(config: AsksYesNo, codec: Codec, name: str) -> list[int]:
    """Return the first tokens of the positive and the negative answer.

    Raises:
        ModelLoadError: An answer has no tokens, or both begin with the same one.
    """
    judging = config.resolved()
    words = []
    for field in ("positive", "negative"):
        word = getattr(judging, field)
        ids = codec.encode_continuation(word, parse=True)
        if not ids:
            raise ModelLoadError(
                f"{field}={word!r} encodes to no tokens of {name}. Hint: use another word"
            )
        words.append(ids[0])
    if words[0] == words[1]:
        raise ModelLoadError(
            f"positive={judging.positive!r} and negative={judging.negative!r} begin with the "
            f"same token of {name}. Hint: choose two answers whose first tokens differ"
        )
    return words
