"""`stars init`: ask a few questions and write an annotated config file."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from stars_engine.cli.messages import messages
from stars_engine.cli.settings import check_preset
from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.config.presets import PRESET_NAMES, preset
from stars_engine.files.config_files import check_suffix, check_writable
from stars_engine.files.disk import write_file
from stars_engine.schema import Schema

_PRESETS = [name for name in PRESET_NAMES if name != "paper"]  # which needs a target
_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "seed")
_ALIGN = ("max_attempts", "on_exhausted", "deadline_s")


def init_command(
    *,
    model: Annotated[
        str | None, typer.Option(help="Language model: hub name or directory.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Reward model, or 'package.module:name' to call.")
    ] = None,
    preset_name: Annotated[
        str | None, typer.Option("--preset", help=f"Thresholds: {', '.join(_PRESETS)}.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Completion tokens at most.")] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("stars.yaml"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Ask a few questions and write an annotated config file."""
    if preset_name is not None:
        _as_preset(preset_name)
    check_suffix(out, "config", (".yaml", ".yml"))
    if out.exists() and not force:
        raise typer.BadParameter(f"{out} exists. Hint: give --force, or another --out FILE")
    check_writable(out, "config")

    def ask(given: Any, text: str, default: Any, check: Callable[[str], Any] | None = None) -> Any:
        if given is not None:
            return given
        return default if yes else typer.prompt(text, default=default, value_proc=check)

    base = StarsConfig()
    model = ask(model, "Language model (hub name or directory)", base.model.shown_name)
    is_embedded = model == base.model.shown_name
    suggested = getattr(base.reward, "name_or_path", "") if is_embedded else None
    if reward is None and yes and not is_embedded:
        raise typer.BadParameter("--reward is required with --model and --yes")
    reward = ask(reward, "Reward (hub name, directory, or package.module:name to call)", suggested)
    values: dict[str, Any] = {"model": model, "reward": reward}
    own_pair = not (is_embedded and reward == suggested)
    if own_pair:
        choice = ask(preset_name, f"Thresholds ({', '.join(_PRESETS)})", "best", _as_preset)
        values["align"] = choice
    elif preset_name is not None:
        values["align"] = preset_name
    length = ask(max_tokens, "Tokens of an answer at most", base.sampling.max_tokens)  # type: ignore[union-attr]
    values["sampling"] = {"max_tokens": int(length)}
    text = annotated(values)
    StarsConfig.model_validate(yaml.safe_load(text))  # what is written can be read
    write_file(out, text, "config")
    messages.say(f'written to {out}; try: stars generate "Hello" --config {out}')


def _as_preset(name: str) -> str:
    return check_preset(name, _PRESETS)


def annotated(values: dict[str, Any]) -> str:
    """Return a config file with comments.

    Args:
        values: `model` and `reward` as names, `align` as the name of a preset or missing, and
            `sampling`.

    Raises:
        ConfigError: A value is not allowed.
    """
    settings = StarsConfig.model_validate(values)
    lines = [
        '# Settings for stars-engine: `stars generate "..." --config FILE`, or',
        "# StarsEngine(StarsConfig.from_file(FILE)). A line with a leading `# ` and a value shows",
        "# a default. docs/configuration.md lists all fields.",
        "",
    ]
    for name in ("model", "reward"):
        lines += [*_about(StarsConfig, name), *_lines({name: values[name]}), ""]
    if "align" in values:
        chosen = preset(values["align"])
        lines += _section("align", chosen, _ALIGN)
    lines += _section("sampling", settings.sampling, _SAMPLING, own=values["sampling"])
    return "\n".join(lines)


def _section(
    name: str,
    part: Any,
    shown: tuple[str, ...],
    *,
    own: dict[str, Any] | None = None,
) -> Iterator[str]:
    """Yield a mapping: the given fields, and the defaults of others as comments."""
    kind: type[Schema] = AlignParams if name == "align" else SamplingParams
    values = part.model_dump(mode="json", include=part.model_fields_set) if own is None else own
    if "schedule" in values:
        values["schedule"] = {
            key: value
            for key, value in values["schedule"].items()
            if key == "kind" or value != type(part.schedule).model_fields[key].default
        }
    yield from _about(StarsConfig, name)
    yield f"{name}:"
    for field, value in values.items():
        yield from (f"  {line}" for line in _about(kind, field))
        yield from (f"  {line}" for line in _lines({field: value}))
    for field in shown:
        if field not in values:
            yield from (f"  {line}" for line in _about(kind, field))
            yield from (f"  # {line}" for line in _lines({field: kind.model_fields[field].default}))
    yield ""


def _about(kind: type[Schema], field: str) -> list[str]:
    about = re.sub(r"\bNone\b", "null", kind.model_fields[field].description or "")
    return [f"# {line}" for line in textwrap.wrap(about, 90)]


def _lines(values: dict[str, Any]) -> list[str]:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).splitlines()
