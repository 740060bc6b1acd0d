"""Answers of an engine, stored in files so that an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from stars_engine import (
    AlignParams,
    CalibratedSchedule,
    SamplingParams,
    StarsEngine,
    StarsResult,
    calibrate,
)


@dataclass(frozen=True)
class AnswerRecord:
    """The stored part of a result.

    Attributes:
        prompt: Index of the prompt.
        text: The answer, without the prompt.
        ids: Its token ids.
        reward: The guide's reward of the whole answer.
        num_drafted: Tokens of all judged draws.
        num_segments: Kept segments.
        num_forced: Segments kept without acceptance.
    """

    prompt: int
    text: str
    ids: tuple[int, ...]
    reward: float
    num_drafted: int
    num_segments: int
    num_forced: int

    @classmethod
    def of(cls, result: StarsResult) -> AnswerRecord:
        """Return the fields that the figures need."""
        if result.reward is None:
            raise ValueError(f"prompt {result.prompt_index} has an answer without a reward")
        return cls(
            prompt=result.prompt_index,
            text=result.text,
            ids=result.token_ids,
            reward=result.reward,
            num_drafted=result.usage.num_drafted_tokens,
            num_segments=len(result.segments),
            num_forced=result.usage.num_forced,
        )


class Arms:
    """Answers and thresholds of an engine, stored by their inputs.

    Everything is stored under a hash of models, prompts and settings, so that stored answers are
    never used for other inputs.

    Args:
        engine: Loads its models when something is not in the files.
        directory: Directory of the files.
        models: Directories of the engine's checkpoints.
    """

    def __init__(self, engine: StarsEngine, directory: Path, models: Sequence[Path]) -> None:
        self._engine, self._directory = engine, directory
        directory.mkdir(parents=True, exist_ok=True)
        self._models = [_fingerprint(path) for path in models]

    def vanilla(self, prompts: Sequence[str], sampling: SamplingParams) -> list[AnswerRecord]:
        """Return plain answers, `sampling.n` for each prompt."""
        about = ["vanilla", sampling.model_dump(mode="json"), list(prompts)]
        return self._answers(about, lambda: self._engine.vanilla(prompts, sampling=sampling))

    def stars(
        self, prompts: Sequence[str], sampling: SamplingParams, align: AlignParams
    ) -> list[AnswerRecord]:
        """Return aligned answers."""
        values = align.model_dump(mode="json")
        about = ["stars", sampling.model_dump(mode="json"), values, list(prompts)]
        return self._answers(
            about, lambda: self._engine.generate(prompts, sampling=sampling, align=align)
        )

    def thresholds(
        self, prompts: Sequence[str], sampling: SamplingParams, *, segment_len: int, budget: float
    ) -> CalibratedSchedule:
        """Return thresholds with a regressed baseline that spend `budget` tokens per kept one."""
        about = ["thresholds", sampling.model_dump(mode="json"), segment_len, budget, list(prompts)]
        path = self._path(about, "yaml")
        if not path.exists():
            schedule = calibrate(
                self._engine, prompts, budget=budget, segment_len=segment_len, sampling=sampling
            )
            _written(path, schedule.to_file)
        return CalibratedSchedule.from_file(path)

    def _answers(self, about: list[Any], make: Any) -> list[AnswerRecord]:
        path = self._path(about, "json")
        if not path.exists():
            rows = [asdict(AnswerRecord.of(result)) for result in make()]
            _written(path, lambda part: part.write_text(json.dumps(rows), encoding="utf-8"))
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [AnswerRecord(**{**row, "ids": tuple(row["ids"])}) for row in rows]

    def _path(self, about: list[Any], ending: str) -> Path:
        text = json.dumps([*self._models, *about], sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return self._directory / f"{about[0]}-{digest}.{ending}"


def perplexity(model: Path, prompts: Sequence[str], answers: Sequence[AnswerRecord]) -> float:
    """Return the base model's perplexity on answers given their prompts.

    The model is used unchanged: temperature 1, all tokens. So arms differ only in their texts.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    encoded: list[list[int]] = tokenizer(list(prompts))["input_ids"]
    total = np.zeros(2)
    for start in range(0, len(answers), 32):
        rows = [(encoded[answer.prompt], answer.ids) for answer in answers[start : start + 32]]
        total += _nats(network, rows)
    return float(np.exp(total[0] / total[1]))


@torch.inference_mode()
def _nats(network: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> NDArray[np.float64]:
    """Return the negative log-likelihood of the second parts, and their number of tokens."""
    width = max(len(before) + len(after) for before, after in rows)
    ids, targets = (torch.full((len(rows), width), value) for value in (0, -100))
    for line, (before, after) in enumerate(rows):
        start, end = len(before), len(before) + len(after)
        ids[line, :end] = torch.tensor([*before, *after])
        targets[line, start:end] = ids[line, start:end]
    # Causal attention never looks right, so right padding needs no mask.
    logits = network(input_ids=ids, use_cache=False).logits[:, :-1]
    loss = functional.cross_entropy(
        logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    return np.array([loss.item(), (targets[:, 1:] != -100).sum().item()])


def _fingerprint(directory: Path) -> str:
    names = ("model.safetensors", "config.json", "tokenizer.json")
    # The tokenizer may be that of the partner.
    files = (directory / name for name in names if (directory / name).exists())
    contents = b"".join(file.read_bytes() for file in files)
    return hashlib.blake2b(contents, digest_size=8).hexdigest()


def _written(path: Path, write: Any) -> None:
    """Write a file atomically, even if another process does the same."""
    part = path.with_name(f"part-{os.getpid()}-{path.name}")
    write(part)
    part.replace(path)
