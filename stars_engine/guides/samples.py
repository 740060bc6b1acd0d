"""Answers of a language model to learn from: sampled by the engine, stored as JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stars_engine.algorithm.baselines import PlainDecoding
from stars_engine.algorithm.candidate import Candidate
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.verification import DraftVerification
from stars_engine.calibration.host import Host
from stars_engine.config import SamplingParams
from stars_engine.errors import ConfigError, Problem
from stars_engine.files.disk import append_lines, file_error, why_not, write_file
from stars_engine.types import Prompt

_TITLE = "train_guide"
ProgressCallback = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """One answer, with what a judge says of it.

    Attributes:
        prompt_index: Index of its prompt.
        prompt_ids: The prompt as token ids.
        token_ids: The answer, including a token that ends it.
        prompt: The prompt as text.
        text: The answer as text.
        score: What the judge says of the whole answer; None before it is judged.
        partial: What the judge says of beginnings, by their number of tokens.
    """

    prompt_index: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    prompt: str
    text: str
    score: float | None = None
    partial: dict[int, float] = field(default_factory=dict)


class _Collecting(PlainDecoding):
    """Plain sampling without rewards that remembers its rollouts."""

    def __init__(self) -> None:
        self.rollouts: dict[tuple[int, int], Rollout] = {}

    def open(self, rollout: Rollout, candidates: Sequence[Candidate]) -> DraftVerification:
        """See `DecodingStrategy`."""
        self.rollouts[rollout.prompt_index, rollout.sample_index] = rollout
        return DraftVerification(rollout, candidates, [])


def draw_samples(
    engine: Host,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    path: Path,
    *,
    progress: ProgressCallback,
    chunk: int = 8,
) -> list[JudgedAnswer]:
    """Sample `sampling.n` answers to each prompt; continue with those that a file has already.

    Args:
        engine: The engine that samples.
        prompts: The prompts.
        sampling: The proposal, with a seed.
        path: JSON lines of samples; appended to after every few prompts.
        progress: Called with "sampling", the prompts done, and all prompts.
        chunk: Prompts between two writes.
    """
    found = read_samples(path, sampling.n)
    done = {sample.prompt_index for sample in found}
    missing = [index for index in range(len(prompts)) if index not in done]
    for first in range(0, len(missing), chunk):
        progress("sampling", len(prompts) - len(missing) + first, len(prompts))
        some = missing[first : first + chunk]
        new = sample_each(engine, {index: prompts[index] for index in some}, sampling)
        append_samples(path, new)
        found += new
    progress("sampling", len(prompts), len(prompts))
    return sorted(found, key=lambda sample: sample.prompt_index)


def sample_each(
    engine: Host, prompts: dict[int, Prompt], sampling: SamplingParams
) -> list[JudgedAnswer]:
    """Sample answers to prompts, given by index."""
    decoding = _Collecting()
    engine.decode(list(prompts.values()), decoding, sampling=sampling)
    indices = list(prompts)
    return [
        JudgedAnswer(
            prompt_index=indices[place],
            prompt_ids=tuple(rollout.prompt_ids),
            token_ids=tuple(rollout.token_ids),
            prompt=rollout.reward_prompt.text,
            text=rollout.text,
        )
        for (place, _), rollout in sorted(decoding.rollouts.items())
    ]


def read_samples(path: Path, num_answers: int) -> list[JudgedAnswer]:
    """Read samples; prompts with other numbers of answers are removed, also from the file.

    A process that ends while it writes leaves a prompt with some of its answers.

    Raises:
        ConfigError: The file cannot be read or written, or a line is not a sample.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise file_error(path, _TITLE, f"cannot be read: {why_not(error)}") from None
    *lines, torn = data.split(b"\n")
    samples = [_sample(path, number, line) for number, line in enumerate(lines, 1)]
    counts = Counter(sample.prompt_index for sample in samples)
    whole = [sample for sample in samples if counts[sample.prompt_index] == num_answers]
    if torn or len(whole) < len(samples):
        write_file(path, _lines_of(whole), _TITLE)
    return whole


def _sample(path: Path, number: int, line: bytes) -> JudgedAnswer:
    try:
        values = json.loads(line)
        values["partial"] = {int(key): value for key, value in values["partial"].items()}
        values |= {name: tuple(values[name]) for name in ("prompt_ids", "token_ids")}
        return JudgedAnswer(**values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"line {number} is not a sample: {error}. Hint: remove the line"
        raise file_error(path, _TITLE, message) from None


def append_samples(path: Path, samples: Iterable[JudgedAnswer]) -> None:
    """Append samples to a file.

    Raises:
        ConfigError: The file cannot be written; it stays unchanged.
    """
    append_lines(path, _lines_of(samples), _TITLE, is_whole=_is_whole)


def _lines_of(samples: Iterable[JudgedAnswer]) -> bytes:
    return "".join(f"{json.dumps(asdict(sample))}\n" for sample in samples).encode()


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def labelled_answers(engine: Host, path: Path, sampling: SamplingParams) -> list[JudgedAnswer]:
    """Read answers that were labelled elsewhere: JSON lines {prompt, answer, score}.

    Raises:
        ConfigError: The file cannot be read, or a line is not one.
    """
    rows = []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise file_error(path, _TITLE, f"cannot be read: {why_not(error)}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            row = (str(values["prompt"]), str(values["answer"]), float(values["score"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            message = (
                f"{path}, line {number}: not a labelled answer. Hint: write lines like "
                '{"prompt": "text", "answer": "text", "score": 1.5}'
            )
            raise ConfigError("train_guide", [Problem("answers", message)]) from None
        rows.append(row)
    prompts = list(dict.fromkeys(prompt for prompt, _, _ in rows))
    # One token each, so that prompts become token ids as they do in use.
    first = sample_each(
        engine, dict(enumerate(prompts)), sampling.replace(max_tokens=1, min_tokens=0, n=1)
    )
    ids_of = {prompts[sample.prompt_index]: sample for sample in first}
    codec = engine.model.codec
    return [
        JudgedAnswer(
            prompt_index=ids_of[prompt].prompt_index,
            prompt_ids=ids_of[prompt].prompt_ids,
            token_ids=tuple(codec.encode_continuation(answer)),
            prompt=prompt,
            text=answer,
            score=score,
        )
        for prompt, answer, score in rows
        if answer
    ]
