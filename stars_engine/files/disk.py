"""Write files atomically, append whole lines, and report file errors with path and fix."""

from __future__ import annotations

import errno
import logging
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stars_engine.problems import ConfigError, Problem

logger = logging.getLogger(__name__)

_FIXES = {
    errno.ENOSPC: "free some space, or use another path",
    errno.EDQUOT: "free some of your quota, or use another path",
    errno.EFBIG: "raise the limit on file sizes, or use another path",
    errno.EROFS: "use a path on a writable file system",
    errno.EACCES: "check the permissions of the file and its directory, or use another path",
    errno.EPERM: "check the permissions of the file and its directory, or use another path",
    errno.EBUSY: "the file is a mount point and cannot be replaced; mount its directory instead",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EISDIR: "give a file in that directory",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; use another directory",
}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}  # the file system does not support fsync
_OPEN_FILES = ("/dev/fd/", "/dev/std", "/proc/")  # names of files that are already open
_BLOCK = 1 << 16
_SHOWN = 200  # characters of a path in a message


def write_file(path: str | Path, data: str | bytes, title: str) -> None:
    """Write a file atomically: the old file stays until the new one is on the disk.

    The new content is written to a temporary file in the same directory, flushed to the disk and
    moved over the old file. Symbolic links are followed, and the mode of an existing file is kept.
    Files that cannot be replaced, such as a pipe or `/dev/stdout`, are written directly.

    Args:
        path: The file.
        data: The content; text is encoded as UTF-8.
        title: What the file holds, for messages.

    Raises:
        ConfigError: The file cannot be written; no temporary file is left.
    """
    write_parts(path, [data.encode() if isinstance(data, str) else data], title)


def write_parts(path: str | Path, parts: Iterable[bytes], title: str) -> None:
    """Write a file atomically in parts; see `write_file`.

    If `parts` raises an error, the old file also stays unchanged.
    """
    with _file_errors(path, title):
        new = _Replacement(Path(path))
    try:
        for part in parts:
            with _file_errors(path, title):
                new.write(part)
        with _file_errors(path, title):
            new.finish()
    finally:
        new.close()


def make_folder(path: str | Path, title: str) -> Path:
    """Create a folder with its parents, unless it exists.

    Args:
        path: The folder; `~` stands for the home directory.
        title: What the folder holds, for messages.

    Raises:
        ConfigError: It cannot be created.
    """
    with _file_errors(path, title):
        folder = Path(path).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def append_lines(
    path: str | Path, data: bytes, title: str, *, is_whole: Callable[[bytes], bool]
) -> None:
    """Append whole lines; if writing fails, the file stays unchanged.

    A last line without a newline was truncated by an earlier crash. It gets its newline if
    `is_whole` returns True, and is removed otherwise.

    Args:
        path: The file; it need not exist.
        data: One or more lines, each with its newline.
        title: What the file holds, for messages.
        is_whole: Returns whether a line is complete except for its newline.

    Raises:
        ConfigError: The file cannot be written, or its last line is not a record.
    """
    with _file_errors(path, title):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                _write_all(handle, data)
                return
            if _repair_last_line(handle, path, title, is_whole):
                data = b"\n" + data
            size = os.fstat(handle).st_size
            try:
                _write_all(handle, data)
                _sync(handle)
            except OSError:
                if size < os.fstat(handle).st_size <= size + len(data):
                    os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)


def file_error(path: str | Path, title: str, message: str) -> ConfigError:
    """Return the error for a file."""
    return ConfigError(f"{title} file", [Problem(shown_path(path), message)])


def why_not(error: OSError | ValueError) -> str:
    """Return why a file cannot be used, and a hint."""
    if isinstance(error, OSError):
        fix = _FIXES.get(error.errno or 0, "check the path and its permissions")
        return f"{error.strerror or error}. Hint: {fix}"
    # A zero byte, or a lone surrogate.
    return f"{error}. Hint: give a path with valid characters"


def check_home(path: Path) -> None:
    """Check that a path does not begin with a `~` that could not be expanded.

    Raises:
        FileNotFoundError: It does; the user has no home directory.
    """
    first = path.parts[0] if path.parts else ""
    if first.startswith("~"):
        raise FileNotFoundError(errno.ENOENT, f"there is no home directory for {first!r}")


def shown_path(path: str | Path) -> str:
    """Return a path for a message: control characters escaped, the middle of a long one omitted."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
    half = _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]}…{text[-half:]}"


@contextmanager
def _file_errors(path: str | Path, title: str) -> Iterator[None]:
    """Convert errors of the operating system to `ConfigError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOENT:
            message = "cannot be written: its directory does not exist. Hint: create the directory"
        else:
            message = f"cannot be written: {why_not(error)}"
        raise file_error(path, title, message) from None


class _Replacement:
    """A temporary file that replaces the target once it is finished."""

    def __init__(self, path: Path) -> None:
        self._old: os.stat_result | None = None
        with suppress(FileNotFoundError):
            self._old = path.stat()
        self._new: str | None = None
        if self._old is not None and stat.S_ISDIR(self._old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        is_open = os.path.abspath(path).startswith(_OPEN_FILES)  # noqa: PTH100 - no disk access
        if is_open or (self._old is not None and not stat.S_ISREG(self._old.st_mode)):
            self._handle: int | None = os.open(path, os.O_WRONLY)
            return
        self._target = os.path.realpath(path)
        if self._old is not None and not os.access(self._target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        name = f".stars-{uuid.uuid4().hex}.tmp"  # short, whatever the length of the target's name
        new = os.path.join(os.path.dirname(self._target), name)  # noqa: PTH118, PTH120
        mode = 0o666 if self._old is None else 0o600  # `finish` sets the mode of the old file
        self._handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        self._new = new

    def write(self, data: bytes) -> None:
        assert self._handle is not None
        _write_all(self._handle, data)

    def finish(self) -> None:
        """Flush to the disk and replace the old file."""
        assert self._handle is not None
        if self._new is None:
            return
        if self._old is not None:
            _adopt(self._handle, self._new, self._old)
        _sync(self._handle)
        handle, self._handle = self._handle, None
        os.close(handle)
        os.replace(self._new, self._target)  # noqa: PTH105 - strings, like the others
        self._new = None
        _sync_folder(os.path.dirname(self._target))  # noqa: PTH120

    def close(self) -> None:
        """Remove an unfinished file."""
        if self._handle is not None:
            with suppress(OSError):
                os.close(self._handle)
        if self._new is not None:
            with suppress(OSError):
                os.unlink(self._new)  # noqa: PTH108 - a string, like the others


def _adopt(handle: int, new: str, old: os.stat_result) -> None:
    """Give the new file the mode of the old one and, if permitted, its owner."""
    made = os.fstat(handle)
    if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid) and hasattr(os, "fchown"):
        with suppress(OSError):
            os.fchown(handle, old.st_uid, old.st_gid)
    os.chmod(new, stat.S_IMODE(old.st_mode))  # noqa: PTH101


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _sync_folder(folder: str) -> None:
    """Flush the directory, so that the move survives a power failure where this is supported."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _repair_last_line(
    handle: int, path: str | Path, title: str, is_whole: Callable[[bytes], bool]
) -> bool:
    """Remove a truncated last line; return whether it is complete and only lacks its newline."""
    size = os.fstat(handle).st_size
    tail = _tail(handle, size)
    if not tail:
        return False
    if is_whole(tail):
        return True
    if tail.strip(b"\0") and not tail.startswith(b"{"):
        message = (
            "the last line is not a record and has no newline; this may be another kind of file. "
            "Hint: give another path, or end the line with a newline"
        )
        raise file_error(path, title, message)
    logger.warning(
        "%s: removing the last line (%d bytes), which an earlier crash truncated",
        shown_path(path),
        len(tail),
    )
    os.ftruncate(handle, size - len(tail))
    return False


def _tail(handle: int, size: int) -> bytes:
    """Return the bytes after the last newline."""
    tail = b""
    while size > 0:
        start = max(0, size - _BLOCK)
        os.lseek(handle, start, os.SEEK_SET)
        block = os.read(handle, size - start)
        _, newline, rest = block.rpartition(b"\n")  # without a newline, `rest` is the whole block
        tail = rest + tail
        if newline:
            break
        size = start
    return tail
