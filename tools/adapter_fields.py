"""Write the fields of adapters, with types, defaults and descriptions of the config's fields.

    python tools/adapter_fields.py [--check]

Editors and type checkers read the source of a class, so these fields are written out. A test checks
that the file is up to date.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stars_engine.config import StarsConfig
from stars_engine.config.flat import PARTS, ROOT_FIELDS

TARGET = Path(__file__).parents[1] / "stars_engine" / "integrations" / "setting_fields.py"
HEADER = '''"""The settings of adapters by name. Written by `tools/adapter_fields.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, Field, SkipValidation
from pydantic.json_schema import SkipJsonSchema

from stars_engine.config import Alternative, Grammar, ModelConfig, RewardConfig, StarsConfig
from stars_engine.schedules import Schedule


class SettingFields(BaseModel):
    """The settings of `StarsConfig` and its parts. `EngineFields` validates them."""
'''
# Other forms that a value may be given in.
WIDER = {
    "model": "str | dict[str, Any]",
    "reward": "str | SkipJsonSchema[Callable[..., Any]] | dict[str, Any]",
    "grammar": "dict[str, Any] | SkipJsonSchema[type[BaseModel]]",
    "stop": "list[str] | str",
    "stop_token_ids": "list[int]",
    "schedule": "dict[str, Any]",
    "alternatives": "list[Alternative | dict[str, Any]]",
}
FACTORIES = {
    "model": "lambda: StarsConfig().model",
    "reward": "lambda: StarsConfig().reward",
    "chat_template_kwargs": "dict",
}


def source() -> str:
    """Return the source of the module."""
    parts: list[Any] = [StarsConfig, *PARTS.values()]
    fields = [
        written(part, name)
        for part in parts
        for name in part.model_fields
        if part is not StarsConfig or name in ROOT_FIELDS
    ]
    text = HEADER + "\n" + "\n".join(fields)
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TARGET), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return done.stdout


def written(part: type[BaseModel], name: str) -> str:
    """Return a field with the type, default and description of a config's field."""
    kind = re.sub(r"Annotated\[(\w+), Field\([^)]*\)\]", r"\1", part.__annotations__[name])
    last = " | None" if kind.endswith(" | None") else ""
    kind = " | ".join(filter(None, (kind.removesuffix(last), WIDER.get(name)))) + last
    field = part.model_fields[name]
    default = f"default={field.default!r}"
    if name in FACTORIES:
        default = f"default_factory={FACTORIES[name]}"
    text = [repr(piece) for piece in pieces(field.description or "")]
    described = "({})".format("\n".join(text)) if len(text) > 1 else text[0]
    return f"    {name}: SkipValidation[{kind}] = Field({default}, description={described})"


def pieces(text: str) -> list[str]:
    """Split text into pieces that fit on a line."""
    return re.findall(r".{1,80}(?:\s+|$)", text)


def main() -> None:
    """Write the file, or with `--check` tell whether it is up to date."""
    text = source()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == text else f"{TARGET} is out of date")
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
