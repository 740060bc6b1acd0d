"""`stars calibrate`: find thresholds for two models, and measure trust in the reward."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stars_engine.cli.loading import loaded
from stars_engine.cli.messages import messages
from stars_engine.cli.options import (
    ConfigOption,
    ModelOption,
    NoImportsOption,
    PilotPromptsOption,
    RewardOption,
)
from stars_engine.cli.output import write
from stars_engine.cli.progress import TimeLeft, Wait
from stars_engine.cli.prompts import read_prompts
from stars_engine.cli.settings import check_judge, given, read_config
from stars_engine.config.rewards import as_reward
from stars_engine.errors import ConfigError, needs_extra
from stars_engine.files.config_files import check_suffix, check_writable, refuse_imports, text_of
from stars_engine.schedules import CalibratedSchedule
from stars_engine.trace import read_jsonl
from stars_engine.types import Prompt

if TYPE_CHECKING:
    from stars_engine.calibration.verify import Verification

_PILOT_SHARE = 0.6  # share of prompts for the pilot; the others verify the prediction


def calibrate_command(
    *,
    config: ConfigOption = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    no_imports: NoImportsOption = False,
    prompts_file: PilotPromptsOption = None,
    from_trace: Annotated[
        Path | None,
        typer.Option(
            "--from-trace", help="Or: the prompts of this file of stars generate --trace."
        ),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Drafted over kept tokens. Default: 2.7.")
    ] = None,
    target_acceptance: Annotated[
        float | None, typer.Option(help="Or: acceptance of a segment's first draft, 0 to 1.")
    ] = None,
    target_forced: Annotated[
        float | None, typer.Option(help="Or: share of segments kept without acceptance.")
    ] = None,
    segment_len: Annotated[int | None, typer.Option(help="Tokens judged together.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer.")] = None,
    on_untrusted: Annotated[
        Literal["warn", "best_of_n", "raise", "ignore"],
        typer.Option(help="What calls do if the reward of unfinished text says too little."),
    ] = "warn",
    seed: Annotated[int, typer.Option(min=0, help="Of the pilot.")] = 0,
    out: Annotated[
        Path, typer.Option(help="The file of thresholds, for --schedule and CalibratedSchedule.")
    ] = Path("schedule.yaml"),
    report: Annotated[
        Path | None, typer.Option(help="Also measure trust and write this HTML page.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="For --report: a second reward model, or 'package.module:name'."),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Keep two prompts in five back, and check the prediction on them.")
    ] = True,
) -> None:
    """Find thresholds for a language model and a reward model.

    An interrupted run resumes from FILE.partial.
    """
    check_suffix(out, "CalibratedSchedule")
    check_writable(out, "CalibratedSchedule")
    _check_report(report, judge)
    sampling = given(max_tokens=max_tokens)
    settings = read_config(
        config, model, reward, sampling=sampling, align={}, allow_imports=not no_imports
    )
    judging = as_reward(judge)
    if no_imports and judging is not None:
        refuse_imports("--judge", judging)
    check_judge(judge, judging)
    prompts = _given_prompts(prompts_file, from_trace)
    target = given(budget=budget, target_acceptance=target_acceptance, target_forced=target_forced)
    if len(target) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in target)
        raise typer.BadParameter(f"{names} are targets that exclude each other. Hint: give one")
    limit = settings.engine.max_active
    parts = None
    if prompts is not None:
        Random(seed).shuffle(prompts)
        parts = _split(prompts, limit, verify=verify)
    with loaded(settings) as (engine, wait):
        from stars_engine.calibration.advice import ENOUGH_PROMPTS
        from stars_engine.calibration.calibrate import calibrate
        from stars_engine.calibration.pilot_prompts import neutral_prompts, uses_chat_format
        from stars_engine.calibration.prefix_trust import warn_of_trust
        from stars_engine.calibration.report import trust_report
        from stars_engine.calibration.verify import verify as check

        if parts is None:
            neutral: list[Prompt] = [*neutral_prompts(chat=uses_chat_format(engine), seed=seed)]
            parts = _split(neutral, limit, verify=verify)
        pilot, others = parts
        stages = _Stages(wait)
        schedule = calibrate(
            engine,
            pilot,
            **target,
            segment_len=segment_len,
            seed=seed,
            progress=stages.advance,
            stage_progress=stages.within,
            checkpoint=out.with_name(f"{out.name}.partial"),
            detect_guard=not target,
            on_untrusted=on_untrusted,
        )
        warn_of_trust(schedule)
        _keep(schedule, out)
        verification = None
        if verify:
            wait.update(f"validating the calibration on {len(others)} other prompts")
            verification = check(engine, schedule, others)
            write(f"{len(pilot)} pilot prompts, {len(others)} others")
        _show_effort(schedule, verification)
        if report is not None:
            own = pilot[:ENOUGH_PROMPTS]
            wait.update(f"measuring trust on plain answers to {len(own)} prompts")
            trust = trust_report(engine, own, judge=judging, schedule=schedule)
            write(trust.summary())
            _write(report, trust, schedule, verification)
            messages.say(f"report written to {report}")


def _given_prompts(prompts_file: Path | None, trace: Path | None) -> list[Prompt] | None:
    """Return the prompts of a file, or the distinct ones of a trace; None if none is given."""
    if prompts_file is not None and trace is not None:
        raise typer.BadParameter("--prompts and --from-trace exclude each other. Hint: give one")
    if prompts_file is not None:
        return [*read_prompts(prompts_file)]
    if trace is None:
        return None
    results = list(read_jsonl(trace))
    found: list[Prompt] = [
        *dict.fromkeys(item.prompt for item in results if item.prompt is not None)
    ]
    if not found:
        raise typer.BadParameter(
            f"{trace} holds no prompt. Hint: give a file that stars generate --trace wrote"
        )
    drafted = sum(item.usage.num_drafted_tokens for item in results)
    kept = sum(item.usage.num_kept_tokens for item in results)
    messages.say(
        f"{len(results)} answers to {len(found)} prompts in {trace}, "
        f"{drafted / max(1, kept):.2f} drafted tokens per kept token"
    )
    return found


class _Stages:
    """Shows the stages of a calibration, the prompts within a stage, and the time left."""

    def __init__(self, wait: Wait) -> None:
        self._wait, self._left = wait, TimeLeft()
        self._restored: int | None = None  # stages that a checkpoint holds
        self._stage, self._time = "stage 1", ""
        self._show("")

    def advance(self, done: int, total: int) -> None:
        """Show that a stage is done."""
        is_first = self._restored is None
        self._restored = done - 1 if self._restored is None else self._restored
        self._time = self._left.said(done - self._restored, total - self._restored)
        self._stage = f"stage {min(done + 1, total)} of {total}"
        self._show("", aloud=is_first)

    def within(self, done: int, total: int) -> None:
        """Show how many prompts of the running stage have all their drafts."""
        self._show(f", {done} of {total} prompts", aloud=False)

    def _show(self, prompts: str, *, aloud: bool = True) -> None:
        self._wait.update(f"calibrating, {self._stage}{prompts}{self._time}", aloud=aloud)


def _show_effort(schedule: CalibratedSchedule, verification: Verification | None) -> None:
    """Print the predicted effort, and the observed one if there is one."""
    from stars_engine.calibration.advice import verification_advice

    if verification is not None:
        write(verification.summary())
        for line in verification_advice(verification):
            messages.say(line, style="bold yellow")
    elif schedule.predicted is not None:
        for name in type(schedule.predicted).model_fields:
            estimate = getattr(schedule.predicted, name)
            if estimate is not None:
                write(f"{name:12} {estimate.shown()}")


def _keep(schedule: CalibratedSchedule, out: Path) -> None:
    """Write the thresholds; if that fails, print them, because calibration takes long."""
    try:
        schedule.to_file(out)
    except ConfigError as error:
        messages.say_error(error)
        messages.say("printing the thresholds to standard output; save them to a file")
        write(text_of(schedule, out.suffix))
        raise typer.Exit(2) from None
    messages.say(f"thresholds written to {out}")


def _check_report(report: Path | None, judge: str | None) -> None:
    """Check early that the report can be written, before long measurements."""
    if report is None:
        if judge is not None:
            raise typer.BadParameter("--judge needs --report FILE. Hint: give both, or neither")
        return
    check_suffix(report, "report", (".html", ".htm"))
    check_writable(report, "report")
    with needs_extra("eval"):
        import matplotlib as mpl  # noqa: F401 - checks that it is installed


def _split(prompts: list[Prompt], limit: int, *, verify: bool) -> tuple[list[Prompt], list[Prompt]]:
    """Return the pilot prompts, at most `limit`, and the prompts that check the prediction."""
    from stars_engine.calibration.calibrate import MIN_PROMPTS

    count = round(len(prompts) * _PILOT_SHARE) if verify else len(prompts)
    if count < MIN_PROMPTS:
        raise typer.BadParameter(
            f"{count} of {len(prompts)} prompts are for the pilot, which needs at least "
            f"{MIN_PROMPTS} (100 are better). Hint: give more prompts"
            f"{', or use --no-verify' if verify else ''}"
        )
    if count > limit:
        messages.say(f"using the first {limit} of {count} prompts for the pilot")
    return prompts[: min(count, limit)], prompts[count:]


def _write(path: Path, *parts: Any) -> None:
    from stars_engine.calibration.report_page import write_report

    write_report(path, *parts)
