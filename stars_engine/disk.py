"""Files written whole or not at all, lines appended whole, and errors that name path and fix."""

from __future__ import annotations

import errno
import logging
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stars_engine.errors import ConfigError, Problem

logger = logging.getLogger(__name__)

_FIXES = {
    errno.ENOSPC: "free some space, or take another path",
    errno.EDQUOT: "free some of your quota, or take another path",
    errno.EFBIG: "raise the limit of file sizes, or take another path",
    errno.EROFS: "take a path on a file system that can be written to",
    errno.EACCES: "check the permissions of the file and its directory, or take another path",
    errno.EPERM: "check the permissions of the file and its directory, or take another path",
    errno.EBUSY: "it is mounted by itself and cannot be replaced; mount its directory instead",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.EISDIR: "give a file in that directory",
    errno.ENOENT: "make the directory, or take another",
    errno.ENOTDIR: "a part of it is a file; take another directory",
}
_WRONG_PATHS = {errno.EISDIR, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}  # file systems that cannot
_OPEN_FILES = ("/dev/fd/", "/dev/std", "/proc/")  # names of files that are open already
_BLOCK = 1 << 16
_SHOWN = 200  # characters of a path in a message


def write_file(path: str | Path, data: str | bytes, title: str) -> None:
    """Write a file, all or nothing: until the new one is on the disk, the old one stays.

    The new content is written beside the file, flushed to the disk and moved over it. Symbolic
    links are followed, and the mode of an existing file is kept. What cannot be replaced, such as
    a pipe or `/dev/stdout`, is written to directly.

    Args:
        path: The file.
        data: Its content; text is encoded as UTF-8.
        title: What the file holds, for messages.

    Raises:
        ConfigError: The file cannot be written; nothing is left beside it.
    """
    write_parts(path, [data.encode() if isinstance(data, str) else data], title)


def write_parts(path: str | Path, parts: Iterable[bytes], title: str) -> None:
    """Write a file piece by piece, all or nothing; see `write_file`.

    What `parts` raises also leaves the old file as it was.
    """
    with _told(path, title):
        new = _Replacement(Path(path))
    try:
        for part in parts:
            with _told(path, title):
                new.write(part)
        with _told(path, title):
            new.finish()
    finally:
        new.close()


def append_lines(
    path: str | Path, data: bytes, title: str, *, is_whole: Callable[[bytes], bool]
) -> None:
    """Append whole lines: an error while writing leaves the file as it was.

    A last line without its newline was torn by an earlier crash. It gets its newline if `is_whole`
    says that only that is missing, and is removed otherwise.

    Args:
        path: The file; it need not exist.
        data: One or more lines, each with its newline.
        title: What the file holds, for messages.
        is_whole: Whether a line lacks nothing but its newline.

    Raises:
        ConfigError: The file cannot be written, or its last line is not one of ours.
    """
    with _told(path, title):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                _write_all(handle, data)
                return
            if _mend_tail(handle, path, title, is_whole):
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
    """Make the error of a file."""
    return ConfigError(f"{title} file", [Problem(shown_path(path), message)])


def why_not(error: OSError | ValueError) -> str:
    """Return why a file cannot be used, and the fix."""
    if isinstance(error, OSError):
        fix = _FIXES.get(error.errno or 0, "check the path and its permissions")
        check = "; check the path" if error.errno in _WRONG_PATHS else ""
        return f"{error.strerror or error}{check}. Hint: {fix}"
    # A zero byte, or halves of surrogate pairs.
    return f"{error}. Hint: give a path of characters that file names may have"


def shown_path(path: str | Path) -> str:
    """Return a path for a message, the middle of a very long one left out."""
    text = str(path)
    half = _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]}…{text[-half:]}"


@contextmanager
def _told(path: str | Path, title: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise file_error(path, title, f"cannot be written: {why_not(error)}") from None


class _Replacement:
    """A file in the making, beside the one whose place it takes when it is finished."""

    def __init__(self, path: Path) -> None:
        self._old: os.stat_result | None = None
        with suppress(FileNotFoundError):
            self._old = path.stat()
        self._new: str | None = None
        if self._old is not None and stat.S_ISDIR(self._old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        is_open = os.path.abspath(path).startswith(_OPEN_FILES)  # noqa: PTH100 - no disk is asked
        if is_open or (self._old is not None and not stat.S_ISREG(self._old.st_mode)):
            self._handle: int | None = os.open(path, os.O_WRONLY)
            return
        self._target = os.path.realpath(path)
        if self._old is not None and not os.access(self._target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        name = f".stars-{uuid.uuid4().hex}.tmp"  # names of any length have room for it
        new = os.path.join(os.path.dirname(self._target), name)  # noqa: PTH118, PTH120
        mode = 0o666 if self._old is None else 0o600  # the old file's own when it is finished
        self._handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        self._new = new

    def write(self, data: bytes) -> None:
        assert self._handle is not None
        _write_all(self._handle, data)

    def finish(self) -> None:
        """Flush to the disk, and take the old file's place."""
        assert self._handle is not None
        if self._new is None:
            return
        if self._old is not None:
            _adopt(self._handle, self._new, self._old)
        _sync(self._handle)
        handle, self._handle = self._handle, None
        os.close(handle)
        os.replace(self._new, self._target)  # noqa: PTH105 - strings, as above
        self._new = None
        _sync_folder(os.path.dirname(self._target))  # noqa: PTH120

    def close(self) -> None:
        """Remove what was not finished."""
        if self._handle is not None:
            with suppress(OSError):
                os.close(self._handle)
        if self._new is not None:
            with suppress(OSError):
                os.unlink(self._new)  # noqa: PTH108 - likewise


def _adopt(handle: int, new: str, old: os.stat_result) -> None:
    """Give a new file the owner, where that is permitted, and the mode of the old one."""
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
    """Have the move itself survive a power failure, where directories can be flushed."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _mend_tail(
    handle: int, path: str | Path, title: str, is_whole: Callable[[bytes], bool]
) -> bool:
    """Remove a torn last line; return whether one is whole and only lacks its newline."""
    size = os.fstat(handle).st_size
    tail = _tail(handle, size)
    if not tail:
        return False
    if is_whole(tail):
        return True
    if tail.strip(b"\0") and not tail.startswith(b"{"):
        message = (
            "its last line is no record and has no newline; it may be another kind of file. Hint: "
            "give another path, or end the line"
        )
        raise file_error(path, title, message)
    logger.warning(
        "%s: the last line was torn by an earlier crash; its %d bytes are removed",
        shown_path(path),
        len(tail),
    )
    os.ftruncate(handle, size - len(tail))
    return False


def _tail(handle: int, size: int) -> bytes:
    """Return what follows the last newline."""
    tail = b""
    while size > 0:
        start = max(0, size - _BLOCK)
        os.lseek(handle, start, os.SEEK_SET)
        block = os.read(handle, size - start)
        _, newline, rest = block.rpartition(b"\n")  # without a newline all of it is the rest
        tail = rest + tail
        if newline:
            break
        size = start
    return tail
