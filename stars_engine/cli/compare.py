"""`stars compare`, `stars sweep` and `stars report`: evaluate arms and write the report."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.progress import TimeRemainingColumn
from rich.table import Table

from stars_engine.cli.messages import messages
from stars_engine.cli.options import ConfigOption, ModelOption, NoImportsOption, RewardOption
from stars_engine.cli.output import cell, write
from stars_engine.cli.progress import Wait, bars
from stars_engine.cli.settings import check_judge, given, import_nothing, read_config
from stars_engine.config import AlignParams
from stars_engine.errors import ConfigError, Problem, needs_extra

if TYPE_CHECKING:
    from stars_engine.evaluation.figures import Evaluation
    from stars_engine.evaluation.recipe import Recipe

RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", help="A recipe file instead of a preset.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder of answers and report; an interrupted run resumes from it."),
]
PromptsOption = Annotated[
    Path | None, typer.Option("--prompts", help="A .jsonl, .csv, .tsv or .txt file of prompts.")
]
ColumnOption = Annotated[str | None, typer.Option(help="Its column of prompts. Default: prompt.")]
FormOption = Annotated[
    str | None, typer.Option(help="text, or dialogue: the first human turn, as in HH-RLHF.")
]
InOrderOption = Annotated[
    bool,
    typer.Option(
        "--in-order", help="Take the first prompts for tuning and the next as fresh; no shuffling."
    ),
]
TuningOption = Annotated[int | None, typer.Option(help="Prompts to calibrate and choose on.")]
FreshOption = Annotated[int | None, typer.Option(help="Other prompts, for the report.")]
JudgeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        help="NAME=REWARD, repeatable: a reward model, or 'package.module:name' that takes lists "
        "of prompts and answers. The first judge chooses arms.",
    ),
]
SeedOption = Annotated[list[int] | None, typer.Option(help="Seed of every arm; repeatable.")]
MaxTokensOption = Annotated[int | None, typer.Option(help="Tokens of an answer at most.")]
SamplesOption = Annotated[int | None, typer.Option("-n", help="Answers per prompt and seed.")]
BatchOption = Annotated[
    int | None, typer.Option(help="Prompts at once; 1 measures single requests.")
]


def compare_command(
    *,
    preset: Annotated[
        str, typer.Option(help="A recipe of the package; `--list` names them.")
    ] = "quick",
    recipe_file: RecipeOption = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="List recipes and exit.")] = False,
    config: ConfigOption = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    no_imports: NoImportsOption = False,
    prompts: PromptsOption = None,
    column: ColumnOption = None,
    form: FormOption = None,
    in_order: InOrderOption = False,
    tuning: TuningOption = None,
    fresh: FreshOption = None,
    judge: JudgeOption = None,
    seed: SeedOption = None,
    max_tokens: MaxTokensOption = None,
    n: SamplesOption = None,
    batch_size: BatchOption = None,
    out: OutOption = None,
) -> None:
    """Compare ways to generate on the same prompts, and write a report."""
    with _preparing():
        from stars_engine.evaluation.recipe import read_recipe, recipe_names
    if list_recipes:
        for name in recipe_names():
            write(f"{name:16} {read_recipe(name).title}")
        return
    recipe = read_recipe(recipe_file or preset, allow_imports=not no_imports)
    recipe = _changed(
        recipe,
        config=(config, model, reward),
        prompts=_prompt_changes(
            file=prompts,
            column=column,
            form=form,
            in_order=in_order,
            tuning=tuning,
            fresh=fresh,
        ),
        sampling=given(max_tokens=max_tokens, n=n),
        judges=judge,
        others=given(seeds=None if not seed else tuple(seed), batch_size=batch_size),
        allow_imports=not no_imports,
    )
    _run(recipe, out or Path("evaluations") / recipe.name)


def sweep_command(
    fields: Annotated[
        list[str],
        typer.Argument(
            help="FIELD=VALUE,VALUE,...: fields of AlignParams, or schedule.FIELD; all combinations"
        ),
    ],
    *,
    preset: Annotated[
        str, typer.Option(help="The recipe whose prompts, judges and other arms are used.")
    ] = "quick",
    recipe_file: RecipeOption = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    no_imports: NoImportsOption = False,
    prompts: PromptsOption = None,
    column: ColumnOption = None,
    form: FormOption = None,
    in_order: InOrderOption = False,
    tuning: TuningOption = None,
    fresh: FreshOption = None,
    judge: JudgeOption = None,
    seed: SeedOption = None,
    max_tokens: MaxTokensOption = None,
    n: SamplesOption = None,
    out: OutOption = None,
) -> None:
    """Compare STARS under every combination of some settings.

    The best is chosen on tuning prompts.
    Example: stars sweep segment_len=8,16,32 schedule.budget=2.7,4
    """
    with _preparing():
        from stars_engine.evaluation.recipe import read_recipe
    recipe = read_recipe(recipe_file or preset, allow_imports=not no_imports)
    arms = sweep_arms(fields)
    recipe = _changed(
        recipe,
        config=(config, model, reward),
        prompts=_prompt_changes(
            file=prompts,
            column=column,
            form=form,
            in_order=in_order,
            tuning=tuning,
            fresh=fresh,
        ),
        sampling=given(max_tokens=max_tokens, n=n),
        judges=judge,
        others={
            "name": "sweep",
            "title": f"Which {' and '.join(field.partition('=')[0] for field in fields)}?",
            "arms": {**_baselines(recipe), **arms},
            "choose": {"STARS": tuple(arms)},
            **given(seeds=None if not seed else tuple(seed)),
        },
        allow_imports=not no_imports,
    )
    _run(recipe, out or Path("evaluations") / "sweep")


def report_command(
    directory: Annotated[Path, typer.Argument(help="The folder of an evaluation.")],
) -> None:
    """Write the report of a finished evaluation again, from its stored answers."""
    with _preparing():
        from stars_engine.evaluation.recipe import Recipe
    recipe = Recipe.from_file(directory / "recipe.yaml")
    _run(recipe, directory)


def sweep_arms(fields: list[str]) -> dict[str, Any]:
    """Return a STARS arm for every combination of values.

    Raises:
        ConfigError: A field or a value is invalid.
    """
    from stars_engine.evaluation.arms import StarsArm

    names, values = [], []
    for field in fields:
        name, found, text = field.partition("=")
        options = text.split(",") if found else []
        if not name or not options or "" in options:
            message = (
                f"{field!r} is not of the form FIELD=VALUE,VALUE. "
                "Hint: for example, segment_len=8,16"
            )
            raise ConfigError("sweep", [Problem("fields", message)])
        names.append(name)
        values.append([yaml.safe_load(option) for option in options])
    arms = {}
    for combination in itertools.product(*values):
        own = dict(zip(names, combination, strict=True))
        align = {name: value for name, value in own.items() if not name.startswith("schedule.")}
        schedule = {
            name.removeprefix("schedule."): value
            for name, value in own.items()
            if name.startswith("schedule.")
        }
        align["schedule"] = {"kind": "auto", **schedule}
        title = ", ".join(
            f"{name.removeprefix('schedule.')} {value}" for name, value in own.items()
        )
        arms[title] = StarsArm(align=AlignParams(**align))
    return arms


def _baselines(recipe: Recipe) -> dict[str, Any]:
    return {name: arm for name, arm in recipe.arms.items() if arm.kind in ("vanilla", "best_of_n")}


def _prompt_changes(
    *,
    file: Path | None,
    column: str | None,
    form: str | None,
    in_order: bool,
    tuning: int | None,
    fresh: int | None,
) -> dict[str, Any]:
    name = None if file is None else str(file)
    changes = given(file=name, column=column, form=form, tuning=tuning, fresh=fresh)
    return {**changes, "seed": None} if in_order else changes


def _changed(
    recipe: Recipe,
    *,
    config: tuple[Path | None, str | None, str | None],
    prompts: Mapping[str, Any],
    sampling: Mapping[str, Any],
    judges: list[str] | None,
    others: Mapping[str, Any],
    allow_imports: bool,
) -> Recipe:
    """Return a recipe with the options that were given."""
    changes = dict(others)
    if config != (None, None, None):
        changes["config"] = read_config(*config, sampling={}, align={}, allow_imports=allow_imports)
    if prompts:
        changes["prompts"] = recipe.prompts.replace(**prompts)
    if sampling:
        changes["sampling"] = recipe.sampling.replace(**sampling)
    if judges:
        changes["judges"] = dict(map(_named_judge, judges))
    recipe = recipe.replace(**changes) if changes else recipe
    if not allow_imports:
        import_nothing(recipe.replace(judges=_not_ours(recipe)))
    for name, source in changes.get("judges", {}).items():
        check_judge(source, recipe.judges[name], name=f"{name}=")
    return recipe


@contextmanager
def _preparing() -> Iterator[None]:
    """Say at once that the command works; importing an evaluation takes seconds."""
    with Wait("preparing the evaluation"), needs_extra("eval"):
        yield


def _not_ours(recipe: Recipe) -> dict[str, Any]:
    """Return the judges that are not code of this package, which is imported anyway."""
    return {
        name: judge
        for name, judge in recipe.judges.items()
        if not str(getattr(judge, "function", "")).startswith("stars_engine.")
    }


def _named_judge(option: str) -> tuple[str, str]:
    name, _, source = option.partition("=")
    if not (name and source):
        raise typer.BadParameter(
            f"--judge {option!r} is not of the form NAME=REWARD. Hint: for example, "
            "--judge tone=my_package.rewards:polite"
        )
    return name, source


def _run(recipe: Recipe, directory: Path) -> None:
    from stars_engine.cli.threads import use_one_thread
    from stars_engine.evaluation.evaluate import evaluate
    from stars_engine.evaluation.report import check_packages, write_reports

    check_packages()
    if recipe.config.uses_embedded_pair:
        use_one_thread()
    messages.say(f"evaluating {recipe.name!r}; answers are kept in {directory}")
    left: dict[str, int] = {}  # what each part had to do when it began
    with bars(TimeRemainingColumn()) as advance:

        def follow(name: str, done: int, total: int) -> None:
            left.setdefault(name, total - done)
            advance(name, done, total)

        evaluation = evaluate(recipe, directory, follow)
    if not any(left.values()):
        halves = [half for half in (evaluation.tuning, evaluation.fresh) if half is not None]
        count = sum(arm.num_answers for half in halves for arm in half.arms.values())
        messages.say(f"all {count} answers and their scores were stored; no model was loaded")
    page = write_reports(evaluation, directory)
    _show(evaluation)
    messages.say(f"report written to {page}")


def _show(evaluation: Evaluation) -> None:
    from rich.console import Console

    fresh = evaluation.fresh
    judge = next(iter(next(iter(fresh.arms.values())).judges))
    table = Table(title=cell(f"{fresh.num_prompts} fresh prompts, judge: {judge}"))
    table.add_column("arm")
    for name in ("tokens ×", "reward", "wins", "− Best-of-N,\nequal tokens", "guards"):
        table.add_column(name, justify="right")
    for arm in fresh.arms.values():
        own = arm.judges[judge]
        over = own.over_equal_tokens
        table.add_row(
            cell(arm.name),
            f"{arm.costs.times.value:.2f}",
            f"{own.reward.value:+.2f}",
            "" if own.wins is None else f"{own.wins.value:.0%}",
            "" if over is None else f"{over.value:+.2f} [{over.low:+.2f}, {over.high:+.2f}]",
            "pass" if arm.guards_hold else "fail",
        )
    Console(highlight=False).print(table)
