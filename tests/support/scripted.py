"""Models for tests of adapters: one writes what a script returns, one is random.

Both run in the real engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from stars_engine import TransformersModel
from tests.support.chat_templates import random_llama, tokenizer_of

Script = Callable[[str], str]

ASSISTANT = "<|im_start|>assistant\n"  # what the templates of these families write before an answer
NEVER = {"kind": "constant", "value": 1e6}  # thresholds that nothing reaches
[_QUOTE] = tokenizer_of("hermes").encode('"', add_special_tokens=False)
CLOSING = {_QUOTE: 4.0}  # a bias, or random strings would hardly ever end
[_BRACKET, _BRACE] = tokenizer_of("hermes").encode("]}", add_special_tokens=False)
ENDING = {**CLOSING, _BRACKET: 4.0, _BRACE: 4.0}  # the same for lists and objects


def random_chat_model(family: str = "hermes") -> TransformersModel:
    """Return a model with random weights."""
    tokenizer = tokenizer_of(family)
    return TransformersModel(model=random_llama(tokenizer), tokenizer=tokenizer)


def scripted(script: Script, family: str = "hermes") -> TransformersModel:
    """Return a model that writes what a script returns."""
    tokenizer = tokenizer_of(family)
    return TransformersModel(model=ScriptedModel(tokenizer, script), tokenizer=tokenizer)


class ScriptedConfig(PretrainedConfig):
    model_type = "scripted"

    def __init__(self, **fields: Any) -> None:
        self.hidden_size = 8
        self.num_hidden_layers = self.num_attention_heads = 1
        self.max_position_embeddings = 16_384
        super().__init__(**fields)


class ScriptedModel(PreTrainedModel):
    """Puts all probability on the next token of what the script answers to the text before.

    Args:
        tokenizer: A byte-level one.
        script: From a conversation as rendered, up to where the assistant begins, to its answer.
    """

    config_class = ScriptedConfig

    def __init__(self, tokenizer: PreTrainedTokenizerFast, script: Script) -> None:
        super().__init__(
            ScriptedConfig(
                vocab_size=len(tokenizer),
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
        )
        self.embeddings = torch.nn.Embedding(len(tokenizer), 1)  # tells the vocabulary
        self._tokenizer, self._script = tokenizer, script

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embeddings

    def get_output_embeddings(self) -> Any:
        return None

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        logits = torch.full((*input_ids.shape, self.config.vocab_size), -50.0)
        for row, ids in enumerate(input_ids.tolist()):
            seen = ids
            if attention_mask is not None:
                seen = [
                    i for i, is_on in zip(ids, attention_mask[row].tolist(), strict=True) if is_on
                ]
            logits[row, -1, self._next(seen)] = 50.0
        return CausalLMOutput(logits=logits)  # type: ignore[arg-type]

    def _next(self, ids: list[int]) -> int:
        mark = self._encode(ASSISTANT)
        starts = (n for n in range(len(ids), 0, -1) if ids[max(0, n - len(mark)) : n] == mark)
        start = next(starts, 0)
        answer = self._encode(self._script(self._tokenizer.decode(ids[: start - len(mark)])))
        eos: int = self._tokenizer.eos_token_id  # type: ignore[assignment]
        return (answer[len(ids) - start :] or [eos])[0]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
