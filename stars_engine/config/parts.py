"""The common base of the configs of language models and rewards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, ClassVar

from stars_engine.files.config_files import find_object
from stars_engine.problems import Problem
from stars_engine.redaction import DIGESTS
from stars_engine.schema import Schema

_PATHS = ("name_or_path", "tokenizer_name_or_path", "adapter_path")


class Part(Schema):
    """A model or reward in a config: what identifies it, and whether a file can contain it."""

    # What to give in a file in place of a live object.
    written_as: ClassVar[str] = "'package.module:name'"

    @property
    def live_fields(self) -> frozenset[str]:
        """Names of the fields whose values are known only in this process."""
        return frozenset()

    @property
    def is_live(self) -> bool:
        """Whether the config holds a live object, which cannot be written to a file."""
        return bool(self.live_fields)

    @property
    def shown_name(self) -> str:
        """The name in messages and metadata."""
        return type(self).__name__

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes it in this process: settings, and ids of live objects.

        Paths are absolute and secrets are digests.
        """
        live = self.live_fields
        values: dict[str, Any] = self.model_dump(exclude=set(live), context=DIGESTS)
        for name in _PATHS:
            path = values.get(name)
            if path is not None and path.startswith((".", "~", "/")):
                values[name] = _absolute(path)
        return values | {name: id(getattr(self, name)) for name in live}

    def unwritable(self) -> Iterator[Problem]:
        """Return a problem for each value that cannot be written to a file."""
        if self.is_live:
            message = f"is a live object, which files cannot contain; give {self.written_as}"
            yield Problem("", message)


def objects_in_keywords(part: Schema, *fields: str) -> Iterator[Problem]:
    """Yield a problem for each field whose mapping holds an object that a file cannot contain."""
    for field in fields:
        found = find_object(getattr(part, field))
        if found is not None:
            shown = " ".join(repr(found).split())[:60]  # some write themselves over many lines
            yield Problem(
                field,
                f"holds {shown} ({type(found).__name__}), which no file gives back; leave it "
                "out of the file and set it in code with .replace(...)",
            )


def _absolute(path: str) -> str:
    """Return an absolute, normalized path, so that two spellings of a path are equal.

    This does not access the disk, because event loops create handles too. The kernel knows the
    working directory. `getcwdb` is used because guards of event loops report `getcwd`.
    """
    path = os.path.expanduser(path)  # noqa: PTH111 - as Path, it would lose "./"
    if not os.path.isabs(path):  # noqa: PTH117 - likewise
        path = os.path.join(os.fsdecode(os.getcwdb()), path)  # noqa: PTH118, PTH109
    return os.path.normpath(path)
