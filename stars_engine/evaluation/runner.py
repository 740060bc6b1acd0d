"""Run the arms of a recipe on its prompts, and store every answer."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stars_engine.algorithm.blockwise import BlockwiseDecoding
from stars_engine.calibration.fingerprints import model_fingerprints
from stars_engine.calibration.over_prompts import Floats
from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.engine.engine import StarsEngine
from stars_engine.engine.handle import check_models
from stars_engine.evaluation.arms import AnyArm, BestOfNArm, BlockwiseArm, VanillaArm
from stars_engine.evaluation.noisy import NoisyReward
from stars_engine.evaluation.prompts import Halves
from stars_engine.evaluation.recipe import Recipe
from stars_engine.evaluation.store import AnswerRecord, AnswerStore, HalfName, identity
from stars_engine.evaluation.thresholds import Thresholds
from stars_engine.files.disk import make_folder
from stars_engine.rewards.loading import check_reward
from stars_engine.schedules import NoSchedule
from stars_engine.types import StarsResult

Progress = Callable[[str, int, int], None]  # what is run, units done, units in total

NO_ALIGN = AlignParams(schedule=NoSchedule())
_POOL = "(plain pool)"  # plain answers to tuning prompts that set targets
_POOL_SEED = 1


class ArmAnswers(NamedTuple):
    """The answers of one arm to the prompts of one half.

    Attributes:
        arm: The arm.
        align: Its settings with thresholds.
        records: One record for each seed and prompt, seeds outermost.
    """

    arm: AnyArm
    align: AlignParams
    records: list[AnswerRecord]


class Runner:
    """Runs arms, one engine at a time, and stores what they generate.

    Args:
        recipe: The evaluation.
        halves: Its prompts.
        directory: Where answers and calibrations are stored; an interrupted run resumes.
        progress: Called with the name of the arm and the prompts done and in total.
    """

    def __init__(
        self,
        recipe: Recipe,
        halves: Halves,
        directory: Path,
        progress: Progress = lambda _name, _done, _total: None,
    ) -> None:
        self._recipe, self._halves, self._progress = recipe, halves, progress
        make_folder(directory, "evaluation")
        self._store = AnswerStore(directory / "answers.jsonl")
        self._thresholds = Thresholds(directory, halves.tuning, recipe.sampling.replace(n=1))

    def run(self, names: Iterable[str], half: HalfName) -> dict[str, ArmAnswers]:
        """Return the answers of arms to the prompts of a half; generate those not stored."""
        found: dict[str, ArmAnswers] = {}
        wanted = list(names)
        for config, noise, group in self._by_models(wanted):
            with _lazy_engine(
                config, noise, self._recipe.sampling.max_tokens, self._check
            ) as engine:
                for name in group:
                    found[name] = self._run_arm(name, half, config, engine)
        return {name: found[name] for name in wanted}

    def _check(self) -> None:
        """Check the judges, and the models of all arms, before those of one arm are loaded."""
        for judge in self._recipe.judges.values():
            check_reward(judge)
        for arm in self._recipe.arms.values():
            check_models(self._config_of(arm))

    def _by_models(self, names: Sequence[str]) -> Iterator[tuple[StarsConfig, float, list[str]]]:
        """Group arms by their models, so that each pair is loaded once."""
        groups: dict[str, tuple[StarsConfig, float, list[str]]] = {}
        for name in names:
            arm = self._recipe.arms[name]
            config = self._config_of(arm)
            key = f"{_models_key(config)} {arm.prefix_noise}"
            groups.setdefault(key, (config, arm.prefix_noise, []))[2].append(name)
        yield from groups.values()

    def _config_of(self, arm: AnyArm) -> StarsConfig:
        """Return the config of an arm's models.

        `vanilla` and `best_of_n` use its settings, which therefore keep rejected texts.
        """
        config = self._recipe.config
        if arm.model is not None or arm.reward is not None:
            config = config.replace(
                model=arm.model or config.model,
                reward=arm.reward or config.reward,
                align=config.align if "align" in config.model_fields_set else AlignParams(),
            )
        return config.replace(align=_recording(config))

    def _run_arm(
        self, name: str, half: HalfName, config: StarsConfig, engine: Callable[[], StarsEngine]
    ) -> ArmAnswers:
        arm, recipe = self._recipe.arms[name], self._recipe
        key = f"{_models_key(config)}-{arm.prefix_noise}"
        align = self._thresholds.resolve(
            arm,
            config,
            engine,
            _digest(key),
            lambda n: self._plain_rewards(key, n, engine),
            progress=partial(self._progress, f"thresholds of {name}"),
        )
        prompts = self._halves.tuning if half == "tuning" else self._halves.fresh
        records: list[AnswerRecord] = []
        total = len(prompts) * len(recipe.seeds)
        for seed in recipe.seeds:
            sampling = recipe.sampling.replace(seed=seed)
            about = [key, _decoding(arm), identity(align), identity(sampling)]
            records += self._answers(
                name,
                half,
                prompts,
                about,
                partial(_generate, arm, engine, sampling=sampling, align=align),
                done=len(records),
                total=total,
                seed=seed,
            )
        return ArmAnswers(arm, align, records)

    def _plain_rewards(self, key: str, n: int, engine: Callable[[], StarsEngine]) -> Floats:
        """Return the guide's rewards of plain answers to the tuning prompts."""
        sampling = self._recipe.sampling.replace(seed=_POOL_SEED, n=n)
        records = self._answers(
            _POOL,
            "tuning",
            self._halves.tuning,
            [key, "vanilla", identity(NO_ALIGN), identity(sampling)],
            lambda some: engine().vanilla(some, sampling=sampling, alternatives=()),
            done=0,
            total=len(self._halves.tuning),
            seed=_POOL_SEED,
        )
        rewards = [[result.reward for result in record.results] for record in records]
        return np.array(rewards, dtype=float)

    def _answers(
        self,
        name: str,
        half: HalfName,
        prompts: Sequence[str],
        about: list[str],
        generate: Callable[[list[str]], list[StarsResult]],
        *,
        done: int,
        total: int,
        seed: int,
    ) -> list[AnswerRecord]:
        """Return one record per prompt; generate and append those that are missing, in batches."""
        keys = [_digest(json.dumps([*about, half, prompt])) for prompt in prompts]
        stored = sum(self._store.get(key) is not None for key in keys)
        done += stored
        self._progress(name, done, total)
        # Batches do not depend on what is stored, so a resumed run computes the same.
        for start in range(0, len(prompts), self._recipe.batch_size):
            indices = range(start, min(start + self._recipe.batch_size, len(prompts)))
            batch = [index for index in indices if self._store.get(keys[index]) is None]
            if not batch:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            results = generate([prompts[index] for index in batch])
            wall_s = (time.perf_counter() - wall) / len(batch)
            cpu_s = (time.process_time() - cpu) / len(batch)
            own: dict[int, list[StarsResult]] = {place: [] for place in range(len(batch))}
            for result in results:
                own[result.prompt_index].append(result)
            self._store.append(
                AnswerRecord(
                    key=keys[index],
                    arm=name,
                    half=half,
                    prompt_index=index,
                    prompt=prompts[index],
                    seed=seed,
                    wall_s=wall_s,
                    cpu_s=cpu_s,
                    results=tuple(own[place]),
                )
                for place, index in enumerate(batch)
            )
            done += len(batch)
            self._progress(name, done, total)
        records = [self._store.get(key) for key in keys]
        # Equal settings under two names share their answers.
        return [
            record.replace(arm=name, prompt_index=index)
            for index, record in enumerate(records)
            if record is not None
        ]


def _generate(
    arm: AnyArm,
    engine: Callable[[], StarsEngine],
    prompts: list[str],
    *,
    sampling: SamplingParams,
    align: AlignParams,
) -> list[StarsResult]:
    if isinstance(arm, VanillaArm):
        return engine().vanilla(prompts, sampling=sampling, alternatives=align.alternatives)
    if isinstance(arm, BestOfNArm):
        return engine().best_of_n(
            prompts, arm.n, sampling=sampling, alternatives=align.alternatives
        )
    if isinstance(arm, BlockwiseArm):
        return engine().decode(prompts, BlockwiseDecoding(), sampling=sampling, align=align)
    return engine().generate(prompts, sampling=sampling, align=align)


def _decoding(arm: AnyArm) -> str:
    """Return what distinguishes the decoding of an arm, beside its settings."""
    if isinstance(arm, BestOfNArm):
        return f"best_of_{arm.n}"
    return arm.kind if isinstance(arm, VanillaArm | BlockwiseArm) else "stars"


@contextmanager
def _lazy_engine(
    config: StarsConfig, noise: float, max_tokens: int, check: Callable[[], None]
) -> Iterator[Callable[[], StarsEngine]]:
    """Yield a function that creates an engine at its first call; it is closed at the end.

    If all answers are stored, it is not called, and no model is loaded. `check` is called before
    an engine is created.
    """
    with ExitStack() as stack:

        @cache
        def get() -> StarsEngine:
            check()
            engine = stack.enter_context(StarsEngine(config))
            if not noise:
                return engine
            noisy = NoisyReward(engine.reward, noise, max_tokens)
            return stack.enter_context(StarsEngine(config, model=engine.model, reward=noisy))

        yield get


def _recording(config: StarsConfig) -> AlignParams:
    align = config.align
    if align.schedule is None:
        align = config.with_thresholds(align)
    return align.replace(keep_rejected_text=True)


def _models_key(config: StarsConfig) -> str:
    values = {
        "config": identity(config.replace(align=NO_ALIGN, sampling=SamplingParams())),
        "files": model_fingerprints(config),
    }
    return json.dumps(values, sort_keys=True, default=str)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
