"""Measure the answers of arms: from stored answers and judges' scores to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stars_engine.calibration.over_prompts import Floats
from stars_engine.evaluation.figures import (
    ArmFigures,
    Costs,
    Curve,
    DifficultyBin,
    HalfFigures,
    JudgeFigures,
    LatencyFigures,
    SegmentFigures,
    TextFigures,
)
from stars_engine.evaluation.perplexity import perplexity
from stars_engine.evaluation.recipe import Recipe
from stars_engine.evaluation.runner import ArmAnswers
from stars_engine.evaluation.statistics import (
    at_equal_tokens,
    best_of_curve,
    independent_pairs,
    length_controlled_win_rate,
    mean_over_prompts,
    over_prompts,
    ranking,
    tokens_to_reach,
    win_rate,
)
from stars_engine.evaluation.store import HalfName, name_of
from stars_engine.evaluation.tables import GUIDE, ArmTable, Measures, Nats, Pool, pool_of
from stars_engine.evaluation.text_measures import distinct, repetition, self_bleu
from stars_engine.types import StarsResult

_NUM_BINS = 5


def measure(
    recipe: Recipe, answers: Mapping[str, ArmAnswers], half: HalfName, measures: Measures
) -> HalfFigures:
    """Return the figures of all arms on one half."""
    num_prompts = len({record.prompt_index for record in answers[recipe.reference].records})
    tables = {name: ArmTable(found, num_prompts, measures.score) for name, found in answers.items()}
    judges = list(recipe.judges) or [GUIDE]
    opinions = {
        name: {judge: table.opinions(judge) if judge != GUIDE else table.guide for judge in judges}
        for name, table in tables.items()
    }
    reference = tables[recipe.reference]
    pool = pool_of(recipe, tables, judges, measures.score)
    arms: dict[str, ArmFigures] = {}
    for name in [recipe.reference, *(n for n in tables if n != recipe.reference)]:
        table = tables[name]
        figures = ArmFigures(
            name=name,
            kind=table.arm.kind,
            settings=_settings(table),
            num_answers=table.kept.size,
            guide=mean_over_prompts(table.guide.mean(1)),
            judges={
                judge: _judged(
                    judge,
                    (table, opinions[name][judge]),
                    None
                    if name == recipe.reference
                    else (reference, opinions[recipe.reference][judge]),
                    pool,
                )
                for judge in judges
            },
            costs=_costs(table, reference),
            texts=_texts(table, measures.nats),
            segments=_segments(table),
            latency=_latency(table.flat),
            difficulty=_by_difficulty(table, reference, opinions[name][judges[0]]),
        )
        limits = arms.get(recipe.reference, figures)
        arms[name] = figures.replace(guards=guards_of(recipe, figures, limits))
    return HalfFigures(
        half=half,
        num_prompts=num_prompts,
        arms={name: arms[name] for name in tables},
        curve=None if pool is None else _curve(pool),
        rankings={
            judge: ranking({name: opinions[name][judge] for name in tables}) for judge in judges
        }
        if len(tables) > 2
        else {},
    )


def guards_of(recipe: Recipe, figures: ArmFigures, plain: ArmFigures) -> dict[str, bool]:
    """Return whether each guarded measure is within its limits."""
    guards, texts, usual = recipe.guards, figures.texts, plain.texts
    shares = {
        "distinct_2": (texts.distinct_2_within, usual.distinct_2_within, guards.distinct_2),
        "tokens": (texts.tokens, usual.tokens, guards.tokens),
    }
    if texts.perplexity is not None and usual.perplexity is not None:
        shares["perplexity"] = (texts.perplexity, usual.perplexity, guards.perplexity)
    held = {
        name: bool(low * base <= value <= high * base)
        for name, (value, base, (low, high)) in shares.items()
    }
    if figures.segments is not None:
        held["forced"] = figures.segments.forced <= guards.forced
    return held


def _curve(pool: Pool) -> Curve:
    return Curve(
        arm=pool.name,
        guide=tuple(best_of_curve(pool.guide, pool.guide).mean(0)),
        judges={
            judge: tuple(best_of_curve(pool.guide, values).mean(0))
            for judge, values in pool.judges.items()
        },
    )


def _judged(
    judge: str,
    ours: tuple[ArmTable, Floats],
    reference: tuple[ArmTable, Floats] | None,
    pool: Pool | None,
) -> JudgeFigures:
    """Return the figures of one arm and judge.

    Args:
        judge: Name of the judge.
        ours: The arm, and the judge's rewards of its answers.
        reference: The same for the reference arm; None if it is this arm.
        pool: See `Pool`.
    """
    table, opinion = ours
    mean = opinion.mean(1)
    wins = at_length = equal = over = like = None
    if reference is not None:
        plain, theirs = reference
        pairs = independent_pairs(opinion.shape[1], theirs.shape[1])
        wins = mean_over_prompts(win_rate(opinion, theirs, pairs))
        at_length = length_controlled_win_rate(*_paired(opinion, theirs, table.kept, plain.kept))
    if pool is not None:
        curve = best_of_curve(pool.guide, pool.judges[judge])
        drafted, length = table.drafted.mean(1), pool.tokens.mean(1)

        def over_equal(picked: Any) -> Any:
            times = drafted[picked].mean(-1) / length[picked].mean(-1)
            return mean[picked].mean(-1) - at_equal_tokens(curve[picked].mean(-2), times)

        equal = over_prompts(over_equal, len(mean))
        over = mean_over_prompts(mean - curve[:, pool.n - 1])
        like = tokens_to_reach(curve.mean(0), float(mean.mean()))
    return JudgeFigures(
        reward=mean_over_prompts(mean),
        wins=wins,
        wins_at_equal_length=at_length,
        over_equal_tokens=equal,
        over_best_of=over,
        as_good_as_best_of=like,
    )


def _paired(
    ours: Floats, theirs: Floats, our_len: Floats, their_len: Floats
) -> tuple[Floats, Floats]:
    """Return wins and extra tokens of every pair of answers to one prompt."""
    left, right = ours[:, :, None], theirs[:, None, :]
    wins = (left > right) + 0.5 * (left == right)
    extra = our_len[:, :, None] - their_len[:, None, :]
    mask = independent_pairs(ours.shape[1], theirs.shape[1])
    return wins[:, mask].ravel(), extra[:, mask].ravel()


def _costs(table: ArmTable, reference: ArmTable) -> Costs:
    drafted, plain = table.drafted.mean(1), reference.kept.mean(1)
    generated = table.array(lambda result: result.usage.num_generated_tokens)
    return Costs(
        times=over_prompts(
            lambda picked: drafted[picked].mean(-1) / plain[picked].mean(-1), len(plain)
        ),
        generated_times=float(generated.mean() / reference.kept.mean()),
        drafted_tokens=float(drafted.mean()),
        discarded=float(1 - table.kept.sum() / generated.sum()),
        reward_tokens=float(table.array(lambda r: r.usage.num_reward_tokens).mean()),
        reward_calls=float(table.array(lambda r: r.usage.num_reward_calls).mean()),
        wall_s=sum(record.wall_s for record in table.records) / table.kept.size,
        cpu_s=sum(record.cpu_s for record in table.records) / table.kept.size,
    )


def _texts(table: ArmTable, nats: Nats | None) -> TextFigures:
    texts = [text for _, text in table.pairs]
    one_each = [own[0].text for own in table.results]
    within = [value for value in (distinct([text], 2) for text in texts) if not np.isnan(value)]
    return TextFigures(
        perplexity=None if nats is None else perplexity(nats(table.pairs)),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(one_each, 2),
        distinct_2_within=float(np.mean(within)) if within else float("nan"),
        self_bleu=self_bleu(one_each),
        repetition=float(np.mean([repetition(text) for text in texts])),
        tokens=float(table.kept.mean()),
        ended=float(np.mean([result.finish_reason == "stop" for result in table.flat])),
    )


def _segments(table: ArmTable) -> SegmentFigures | None:
    """Return how segments were accepted; None for arms that judge whole answers only."""
    if table.arm.kind in ("vanilla", "best_of_n"):
        return None
    judged = [
        (index, len(segment.attempts), segment.forced)
        for result in table.flat
        for index, segment in enumerate(result.segments)
        if segment.attempts
    ]
    if not judged:
        return None
    attempts = np.array([count for _, count, _ in judged])
    accepted: dict[int, list[int]] = {}
    for index, count, forced in judged:
        own = accepted.setdefault(index, [0, 0])
        own[0] += not forced
        own[1] += count
    draws = sum(result.usage.num_attempts for result in table.flat)
    repeated = sum(result.usage.num_repeated_draws for result in table.flat)
    return SegmentFigures(
        num_segments=len(judged),
        attempts_mean=float(attempts.mean()),
        attempts_p50=float(np.percentile(attempts, 50)),
        attempts_p95=float(np.percentile(attempts, 95)),
        attempts_max=int(attempts.max()),
        histogram=tuple(np.bincount(attempts)[1:].tolist()),
        forced=float(np.mean([forced for *_, forced in judged])),
        acceptance=tuple(accepted[i][0] / accepted[i][1] for i in sorted(accepted)),
        repeated=repeated / draws,
    )


def _latency(results: Sequence[StarsResult]) -> LatencyFigures:
    seconds = [result.usage.duration_s for result in results]
    firsts = [
        result.usage.duration_s
        if result.usage.first_segment_s is None
        else result.usage.first_segment_s
        for result in results
    ]
    p50, p95 = np.percentile(seconds, (50, 95))
    first_p50, first_p95 = np.percentile(firsts, (50, 95))
    return LatencyFigures(
        p50=float(p50), p95=float(p95), first_p50=float(first_p50), first_p95=float(first_p95)
    )


def _by_difficulty(
    table: ArmTable, reference: ArmTable, opinion: Floats
) -> tuple[DifficultyBin, ...]:
    """Return bins of prompts from hard to easy, by the plain answers' guide reward."""
    plain = reference.guide.mean(1)
    count = min(_NUM_BINS, len(plain) // 4)
    if count < 2:
        return ()
    bins = []
    length = reference.kept.mean()
    for prompts in np.array_split(np.argsort(plain, kind="stable"), count):
        own = [result for prompt in prompts for result in table.results[prompt]]
        judged = [s for result in own for s in result.segments if s.attempts]
        seconds = [result.usage.duration_s for result in own]
        p50, p95 = np.percentile(seconds, (50, 95))
        bins.append(
            DifficultyBin(
                plain_reward=float(plain[prompts].mean()),
                num_prompts=len(prompts),
                attempts=float(np.mean([len(s.attempts) for s in judged])) if judged else 1.0,
                forced=float(np.mean([s.forced for s in judged])) if judged else 0.0,
                times=float(table.drafted[prompts].mean() / length),
                seconds_p50=float(p50),
                seconds_p95=float(p95),
                judge=float(opinion[prompts].mean()),
            )
        )
    return tuple(bins)


def _settings(table: ArmTable) -> dict[str, Any]:
    """Return the arm, with its thresholds where it has any."""
    values: dict[str, Any] = table.arm.model_dump(
        mode="json", exclude_defaults=True, fallback=name_of
    )
    values["kind"] = table.arm.kind
    if table.arm.kind in ("stars", "rejection"):
        align = table.align.model_dump(mode="json", exclude_defaults=True, fallback=name_of)
        align["segment_len"] = table.align.segment_len  # also if it is the default
        schedule = align.get("schedule", {})
        for name in ("stages", "terminals", "made_for", "curve"):  # long; stored with the answers
            schedule.pop(name, None)
        values["resolved"] = align
    return values
