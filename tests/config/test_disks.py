"""Full and read-only disks, and processes that are killed while they write."""

from __future__ import annotations

import ast
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stars_engine import (
    AlignParams,
    AutoSchedule,
    CalibratedSchedule,
    ConfigError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
)
from stars_engine.calibration.cache import CalibrationCache
from stars_engine.calibration.checkpoint import StageCheckpoint
from stars_engine.calibration.fit import Fitter, Target
from stars_engine.cli.app import app
from stars_engine.evaluation import Recipe
from stars_engine.evaluation.report import write_reports
from stars_engine.evaluation.store import AnswerRecord, AnswerStore
from stars_engine.files.config_files import check_writable
from stars_engine.files.disk import append_lines, make_folder, write_file, write_parts
from stars_engine.guides.samples import JudgedAnswer, append_samples
from stars_engine.hidden_states.value_head import WEIGHTS_FILE, ValueHead
from stars_engine.trace import read_jsonl, write_jsonl
from training.linear import LinearClassifier
from training.records import save_array

ROOT = Path(__file__).parents[2]
FULL = 48 * 1024  # bytes of the file system that is filled
FITTER = Fitter(Target("budget", 2.0), max_attempts=4, beta=0.0, stops=False, relative_beta=0.0)


def mounted(place: Path, *options: str) -> Iterator[Path]:
    place.mkdir()
    command = ["mount", *options, str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    yield from mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={FULL}", "none")


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", 0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


@pytest.fixture
def immutable(tmp_path: Path) -> Iterator[Path]:
    """A directory that takes no new files, not even of root."""
    place = tmp_path / "immutable"
    place.mkdir()
    (place / "old.json").write_text("old")
    if os.geteuid():
        place.chmod(0o555)
    elif subprocess.run(["chattr", "+i", place], capture_output=True, check=False).returncode:
        pytest.skip("no directory can be made immutable here")
    yield place
    if os.geteuid():
        place.chmod(0o755)
    else:
        subprocess.run(["chattr", "-i", place], check=True)


def result(text: str = "a", seed: int = 0) -> StarsResult:
    with StarsEngine() as engine:
        [made] = engine.generate("A", sampling=SamplingParams(max_tokens=8, seed=seed))
    return made.replace(text=text)


@pytest.fixture(scope="module")
def one() -> StarsResult:
    return result("x" * 300)


def thresholds(num_stages: int = 2) -> CalibratedSchedule:
    stages = [{"intercept": 0.5, "slope": 1, "offset": i, "sigma": 1} for i in range(num_stages)]
    return CalibratedSchedule(stages=stages, segment_len=8)


LONG = "y" * 6000
WRITERS: dict[str, Callable[[Path, StarsResult], object]] = {
    "stars.yaml": lambda p, _: StarsConfig(sampling=SamplingParams(stop=[LONG])).to_file(p),
    "stars.json": lambda p, _: StarsConfig(sampling=SamplingParams(stop=[LONG])).to_file(p),
    "schedule.yaml": lambda p, _: thresholds(200).to_file(p),
    "results.jsonl": lambda p, one: write_jsonl([one.replace(text=LONG)] * 3, p),
    "recipe.yaml": lambda p, _: Recipe(name="a", title=LONG, arms=VANILLA).to_file(p),
    "report.html": lambda p, _: write_file(p, LONG, "report"),
    "array.npy": lambda p, _: save_array(p, np.zeros(2000)),
    "linear.npz": lambda p, _: LinearClassifier(WORDS, *np.random.rand(2, 900), 0.5).save(p),
}
VANILLA: dict[str, Any] = {"vanilla": {"kind": "vanilla"}}
WORDS = [f"word{index}" for index in range(900)]

# Files within a folder, by name.
FOLDERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "value head": (WEIGHTS_FILE, lambda folder: head().save(folder)),
    "evaluation": (
        "answers.jsonl",
        lambda folder: AnswerStore(folder / "answers.jsonl").append([answer("b")]),
    ),
    "samples": (
        "samples.jsonl",
        lambda folder: append_samples(folder / "samples.jsonl", [judged("b")]),
    ),
}


def head(value: float = 0.0) -> ValueHead:
    weights, biases = [torch.full((1, 3000), value)], [torch.full((1,), value)]
    return ValueHead((1,), "last", weights, biases, {}, {"value": value})


def answer(text: str) -> AnswerRecord:
    about = {"key": text, "arm": "a", "half": "fresh", "prompt_index": 0, "seed": 0}
    return AnswerRecord(**about, prompt=text * 6000, wall_s=1.0, cpu_s=1.0, results=())


def judged(text: str) -> JudgedAnswer:
    return JudgedAnswer(0, (1,), (2,), prompt="a", text=text * 6000)


# Modules that may open files to write: the helper, and a note for waiting processes, which is no
# loss. Models of transformers write themselves, to new folders.
HELPERS = {"stars_engine/files/disk.py", "stars_engine/calibration/cache.py"}


def writes_in(tree: ast.AST) -> Iterator[str]:
    """Yield calls that write a file in another way than by `write_file` and its relatives."""
    for node in ast.walk(tree):
        function = getattr(node, "func", None)
        if function is None:
            continue
        name = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
        modes = [*node.args, *(keyword.value for keyword in node.keywords)]  # type: ignore[attr-defined]
        texts = {part.value for part in modes if isinstance(part, ast.Constant)}
        is_opened = name == "open" and any(
            isinstance(text, str) and set(text) <= set("wxabt+") and set(text) & set("wxa+")
            for text in texts
        )
        if is_opened or name in {"write_text", "write_bytes", "save_file", "touch", "fdopen"}:
            yield ast.unparse(node)


@pytest.mark.slow
def test_every_file_is_written_by_the_helper() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {call}"
        for package in ("stars_engine", "langchain_stars", "llamaindex_stars", "training")
        for path in (ROOT / package).rglob("*.py")
        if str(path.relative_to(ROOT)) not in HELPERS
        for call in writes_in(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set()
    helper = ast.parse((ROOT / "stars_engine/calibration/cache.py").read_text(encoding="utf-8"))
    assert list(writes_in(helper)) == ["note.write_text(str(os.getpid()), encoding='utf-8')"]


COMMANDS: dict[str, tuple[str, list[str]]] = {
    "init": ("stars.yaml", ["init", "--out", "PATH", "--yes"]),
    "show": ("page.html", ["show", "TRACE", "--html", "PATH"]),
    "generate": ("config.json", ["generate", "Hi", "--json", "--trace", "PATH"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_on_a_full_disk_keep_the_old_file(
    disk: Path, tmp_path: Path, one: StarsResult, name: str
) -> None:
    file, arguments = COMMANDS[name]
    path, trace = disk / file, tmp_path / "trace.jsonl"
    write_jsonl([one.replace(text=LONG)], trace)
    fill(disk)
    given = [{"PATH": str(path), "TRACE": str(trace)}.get(word, word) for word in arguments]
    run = CliRunner().invoke(app, given)
    assert isinstance(run.exception, ConfigError)
    assert "No space left on device" in str(run.exception)
    assert [found.name for found in disk.iterdir() if found.stat().st_size] == ["filler"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_full_disk_keeps_the_files_of_a_folder(disk: Path, name: str) -> None:
    file, write = FOLDERS[name]
    write(disk)
    old = (disk / file).read_bytes()
    names = sorted(path.name for path in disk.iterdir())
    fill(disk)
    with pytest.raises(ConfigError, match=r"No space left on device. Hint: free some space"):
        write(disk)
    assert (disk / file).read_bytes() == old
    assert sorted(path.name for path in disk.iterdir()) == sorted([*names, "filler"])
    (disk / "filler").unlink()
    write(disk)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_read_only_folder_is_named(immutable: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written: .* Hint: check the permissions"):
        FOLDERS[name][1](immutable)
    assert [file.name for file in immutable.iterdir()] == ["old.json"]


def test_folders_that_cannot_be_created_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (
        lambda folder: head().save(folder),
        lambda folder: write_reports(None, folder),  # type: ignore[arg-type]
        lambda folder: make_folder(folder, "evaluation"),
    ):
        with pytest.raises(ConfigError, match="Not a directory"):
            write(tmp_path / "file" / "inside")


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_keeps_the_old_file(disk: Path, one: StarsResult, name: str) -> None:
    path = disk / name
    path.write_text("old")
    path.chmod(0o640)
    fill(disk)
    with pytest.raises(ConfigError) as caught:
        WRITERS[name](path, one)
    message = str(caught.value)
    assert str(path) in message
    assert "No space left on device. Hint: free some space" in message
    assert path.read_text() == "old"
    assert sorted(file.name for file in disk.iterdir()) == sorted(["filler", name])
    (disk / "filler").unlink()
    WRITERS[name](path, one)
    assert path.read_bytes() != b"old"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in disk.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_directory_keeps_the_old_file(
    immutable: Path, one: StarsResult, name: str
) -> None:
    path = immutable / "old.json"
    write = WRITERS[name] if name.endswith(("jsonl", "html", "json")) else None
    if write is None:
        path = immutable / name
        write = WRITERS[name]
    with pytest.raises(ConfigError, match=r"cannot be written: .* Hint: check the permissions"):
        write(path, one)
    assert [file.name for file in immutable.iterdir()] == ["old.json"]
    assert (immutable / "old.json").read_text() == "old"


@pytest.mark.parametrize("name", WRITERS)
def test_invalid_paths_are_named(tmp_path: Path, one: StarsResult, name: str) -> None:
    suffix = Path(name).suffix
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / "file").touch()
    targets = {
        tmp_path / f"folder{suffix}": "Is a directory",
        tmp_path / "nowhere" / name: "its directory does not exist",
        tmp_path / "file" / name: "Not a directory",
        tmp_path / ("n" * 5000 + suffix): "File name too long",
        tmp_path / f"zero\0byte{suffix}": "null (byte|character)",
        tmp_path / f"half\ud800{suffix}": "surrogates",
    }
    for target, words in targets.items():
        with pytest.raises(
            ConfigError, match=rf"(?s)cannot be written: .*{words}.*Hint: "
        ) as caught:
            WRITERS[name](target, one)
        assert len(str(caught.value)) < 700
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"folder{suffix}", "file"])


@pytest.mark.parametrize("name", ["n" * 5000 + ".json", "zero\0byte.json"])
def test_files_with_impossible_names_are_not_read(tmp_path: Path, name: str) -> None:
    for read in (StarsConfig.from_file, lambda path: list(read_jsonl(path))):
        with pytest.raises(ConfigError, match=r"cannot be read: "):
            read(tmp_path / name)
    with pytest.raises(ConfigError, match=r"cannot be written: "):
        check_writable(tmp_path / name, "report")


@pytest.mark.slow
def test_a_file_size_limit_acts_like_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    path.write_text("old")
    code = (
        "import resource\n"
        "from stars_engine import ConfigError, SamplingParams, StarsConfig\n"
        "config = StarsConfig(sampling=SamplingParams(stop=['y' * 9000]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "try:\n"
        f"    config.to_file({str(path)!r})\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "File too large" in run.stdout
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["stars.yaml"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_symlinks_modes_and_devices_are_preserved(tmp_path: Path) -> None:
    real, link, dangling = tmp_path / "real", tmp_path / "link", tmp_path / "dangling"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    dangling.symlink_to(tmp_path / "later")
    write_file(link, "new", "text")
    write_file(dangling, "new", "text")
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert real.read_text() == (tmp_path / "later").read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o600
    umask = os.umask(0o027)
    try:
        write_file(tmp_path / "fresh", "new", "text")
    finally:
        os.umask(umask)
    assert (tmp_path / "fresh").stat().st_mode & 0o777 == 0o640
    write_file("/dev/null", "nothing", "text")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(ConfigError, match="No space left"):
        write_file("/dev/full", "nothing", "text")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match="symbolic links"):
        write_file(loop, "new", "text")
    assert loop.is_symlink()


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="needs root")
def test_a_write_protected_file_is_kept(tmp_path: Path) -> None:
    """Its directory would permit to replace it, which its owner did not want."""
    tmp_path.chmod(0o777)
    path = tmp_path / "kept"
    path.write_text("old")
    path.chmod(0o444)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            write_file(path, "new", "text")
        except ConfigError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert path.read_text() == "old"


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, one: StarsResult) -> None:
    path = tmp_path / "results.jsonl"
    write_jsonl([one], path)
    old = path.read_bytes()

    def results() -> Iterator[StarsResult]:
        yield one
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_jsonl(results(), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"]


# --- appended lines ---


def test_a_full_disk_leaves_no_partial_line(disk: Path, one: StarsResult) -> None:
    path = disk / "results.jsonl"
    write_jsonl([one], path)
    fill(disk)
    many = [one] * 100  # the last block of the file has some room
    with pytest.raises(ConfigError, match="No space left"):
        write_jsonl(many, path, append=True)
    whole = path.read_bytes()
    assert whole.endswith(b"\n")
    found = list(read_jsonl(path))
    assert found
    assert all(other == one for other in found)
    (disk / "filler").unlink()
    write_jsonl([one], path, append=True)
    assert len(list(read_jsonl(path))) == len(found) + 1


@pytest.mark.parametrize("cut", [1, 2, 40, 200])
def test_a_truncated_last_line_is_tolerated_and_repaired(
    tmp_path: Path, one: StarsResult, caplog: pytest.LogCaptureFixture, cut: int
) -> None:
    path = tmp_path / "results.jsonl"
    other = one.replace(text="other")
    write_jsonl([one, other], path)
    path.write_bytes(path.read_bytes()[:-cut])
    found = list(read_jsonl(path))
    assert found == ([one, other] if cut == 1 else [one])  # all but the newline is there
    assert ("torn by an earlier crash" in caplog.text) == (cut > 1)
    write_jsonl([other], path, append=True)
    assert list(read_jsonl(path)) == [*found, other]


@pytest.mark.parametrize(
    "tail", [b"{", b'{"text": "\xff', b"\0" * 5000, b'{"text": "a"}', b'{"a": "' + b"b" * 200_000]
)
def test_a_line_truncated_anywhere(tmp_path: Path, one: StarsResult, tail: bytes) -> None:
    path = tmp_path / "results.jsonl"
    write_jsonl([one], path)
    path.write_bytes(path.read_bytes() + tail)
    assert list(read_jsonl(path)) == [one]
    write_jsonl([one], path, append=True)
    assert list(read_jsonl(path)) == [one, one]


def test_a_file_of_another_kind_is_not_appended_to(tmp_path: Path, one: StarsResult) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nand more")
    with pytest.raises(ConfigError, match="may be another kind of file"):
        write_jsonl([one], path, append=True)
    assert path.read_text() == "my notes\nand more"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\xff\xfe{}", "line 2 is not a result: byte 0 is not UTF-8"),
        (b"nonsense", "line 2 is not a result: StarsResult"),
        (b"[1]", "line 2 is not a result: StarsResult"),
        (b'{"text": 1}', "line 2 is not a result: StarsResult"),
        (b"{" * 5000, "line 2 is not a result"),
    ],
)
def test_errors_name_the_line_that_is_not_a_result(
    tmp_path: Path, one: StarsResult, line: bytes, words: str
) -> None:
    path = tmp_path / "results.jsonl"
    write_jsonl([one], path)
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    reading = read_jsonl(path)
    assert next(reading) == one
    with pytest.raises(ConfigError, match=words):
        next(reading)


def test_results_are_read_with_a_byte_order_mark_and_empty_lines(
    tmp_path: Path, one: StarsResult
) -> None:
    path = tmp_path / "results.jsonl"
    write_jsonl([one], path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n  \n" + path.read_bytes())
    assert list(read_jsonl(path)) == [one, one]
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl: cannot be read: No such file"):
        list(read_jsonl(tmp_path / "nowhere.jsonl"))


# --- calibrations ---


def load_or_create(path: Path, make: Callable[[], CalibratedSchedule]) -> CalibratedSchedule:
    return CalibrationCache(path.parent).load_or_create(path.stem, make, lambda: True)


def asked(made: list[int], schedule: CalibratedSchedule) -> Callable[[], CalibratedSchedule]:
    def make() -> CalibratedSchedule:
        made.append(1)
        return schedule

    return make


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_calibration_survives_a_full_disk(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = disk / "calibrations" / "key.yaml"
    path.parent.mkdir()
    fill(disk)
    made: list[int] = []
    schedule = thresholds(200)
    assert load_or_create(path, asked(made, schedule)) is schedule
    [warning] = warnings_of(caplog)
    for word in (str(path), "No space left", "free some space", "STARS_CACHE_DIR"):
        assert word in warning
    assert not list(path.parent.glob(".stars*"))
    assert not list(path.parent.glob("*.yaml"))
    (disk / "filler").unlink()
    assert load_or_create(path, asked(made, schedule)) is schedule
    assert load_or_create(path, asked(made, schedule)) == schedule
    assert len(made) == 2  # the third was read


@pytest.mark.parametrize("kind", ["directory", "full directory", "link to a directory"])
def test_a_calibration_survives_a_directory_in_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = tmp_path / "key.yaml"
    found = tmp_path / "elsewhere" if kind.startswith("link") else path
    found.mkdir()
    if kind == "full directory":
        (path / "key.yaml").touch()
    if found != path:
        path.symlink_to(found, target_is_directory=True)
    schedule = thresholds()
    assert load_or_create(path, lambda: schedule) is schedule
    [warning] = warnings_of(caplog)
    assert "Is a directory" in warning
    assert "set STARS_CACHE_DIR to another directory" in warning
    assert not [p for p in tmp_path.iterdir() if "tmp" in p.name]


def test_a_calibration_survives_a_pipe_in_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing reads the pipe or writes to it, so that opening it would block."""
    path = tmp_path / "key.yaml"
    os.mkfifo(path)
    schedule = thresholds()
    assert load_or_create(path, lambda: schedule) is schedule
    [warning] = warnings_of(caplog)
    assert "A pipe or a device is in its place" in warning
    assert path.is_fifo()


@pytest.mark.parametrize("content", ["", "stages: nothing", "[1", "\0\0", "\ud800"])
def test_an_invalid_file_in_its_place_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = tmp_path / "key.yaml"
    path.write_bytes(content.encode(errors="surrogatepass"))
    schedule = thresholds()
    assert load_or_create(path, lambda: schedule) is schedule
    [warning] = warnings_of(caplog)
    assert "Replaced an invalid cached calibration" in warning
    assert CalibratedSchedule.from_file(path) == schedule


def test_an_invalid_file_on_a_full_disk_is_reported_once(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = disk / "calibrations" / "key.yaml"
    path.parent.mkdir()
    path.write_text("stages: nothing")
    fill(disk)
    schedule = thresholds(200)
    assert load_or_create(path, lambda: schedule) is schedule
    [warning] = warnings_of(caplog)
    assert "No space left" in warning
    assert path.read_text() == "stages: nothing"


def test_a_link_to_nothing_in_its_place_is_filled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "key.yaml"
    path.symlink_to(tmp_path / "target.yaml")
    schedule = thresholds()
    assert load_or_create(path, lambda: schedule) is schedule
    assert load_or_create(path, asked([], schedule)) == schedule
    assert len(warnings_of(caplog)) <= 1


@pytest.mark.parametrize("place", ["file/calibrations/key.yaml", "n" * 300 + "/key.yaml"])
def test_a_calibration_survives_an_impossible_cache_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    (tmp_path / "file").touch()
    schedule = thresholds()
    assert load_or_create(tmp_path / place, lambda: schedule) is schedule
    [warning] = warnings_of(caplog)
    assert "cannot be cached in" in warning


def test_the_cache_may_be_in_a_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    schedule = thresholds()
    for folder in ("~/c", "~nobody_/c"):
        monkeypatch.setenv("STARS_CACHE_DIR", folder)
        cache = CalibrationCache()
        assert cache.load_or_create("key", lambda: schedule, lambda: True) is schedule
        assert cache.path_of("key").exists() == (folder == "~/c")
    said, warning = warnings_of(caplog)
    assert said == f"The calibration is cached in {tmp_path}/home/c/calibrations/key.yaml"
    assert "there is no home directory for '~nobody_'" in warning
    assert "set STARS_CACHE_DIR to another directory" in warning
    assert [found.name for found in tmp_path.iterdir()] == ["home"]


def test_a_read_only_cache_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    schedule = thresholds()
    source = tmp_path / "source"
    source.mkdir()
    schedule.to_file(source / "key.yaml")
    for place in mounted(tmp_path / "bound", "--bind", str(source)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        made: list[int] = []
        assert load_or_create(place / "key.yaml", asked(made, schedule)) == schedule
        assert made == []
        assert warnings_of(caplog) == []
        assert load_or_create(place / "new.yaml", asked(made, schedule)) is schedule
        assert made == [1]
        [warning] = warnings_of(caplog)
        assert "Read-only file system" in warning


@pytest.mark.slow
def test_thresholds_found_on_a_full_disk_are_used(
    disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STARS_CACHE_DIR", str(disk))
    (disk / "calibrations").mkdir()
    fill(disk)
    auto = AlignParams(schedule=AutoSchedule(budget=2.0, num_prompts=8, segment_len=8))
    config = StarsConfig(align=auto, sampling=SamplingParams(max_tokens=16, seed=0))
    with StarsEngine(config) as engine:
        first, second = engine.generate("A film"), engine.generate("A film")
    assert first[0].token_ids == second[0].token_ids
    assert len([text for text in warnings_of(caplog) if "cannot be cached" in text]) == 1
    assert sorted(p.suffix for p in (disk / "calibrations").iterdir()) in ([], [".lock"])


def test_a_calibration_continues_without_checkpoints(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = disk / "pilot.json"
    path.write_text("old")
    saved = StageCheckpoint(path, {"settings": "z" * 9000})
    fill(disk)
    saved.save(FITTER)
    saved.save(FITTER)
    [warning] = warnings_of(caplog)
    assert "The calibration continues without checkpoints" in warning
    assert "No space left" in warning
    assert path.read_text() == "old"
    (disk / "filler").unlink()
    saved.save(FITTER)
    assert json.loads(path.read_text())["stages"] == []


# --- processes that end while they write ---

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import test_disks_writers as writers

name, path, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
generator = random.Random(name)
writers.old(name, path)
for _ in range(kills):
    child = os.fork()
    if child == 0:
        while True:
            writers.write(name, path)
    time.sleep(generator.uniform(0.0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    writers.check(name, path)
print("whole")
"""

KILLED_WRITERS = """
import itertools
import json
from pathlib import Path

import numpy as np
import torch

from stars_engine import CalibratedSchedule, SamplingParams, StarsConfig, StarsResult
from stars_engine.hidden_states.value_head import ValueHead
from training.records import save_array
from stars_engine.calibration.fit import Fitter, Target
from stars_engine.calibration.checkpoint import StageCheckpoint
from stars_engine.files.disk import write_file
from stars_engine.trace import read_jsonl, write_jsonl

CONFIGS = [StarsConfig(sampling=SamplingParams(stop=[c * 40_000])) for c in "ab"]
RESULTS = [StarsResult.model_validate_json(line) for line in Path("RESULTS").open()]
TURNS = itertools.count()
FITTER = Fitter(Target("budget", 2.0), max_attempts=4, beta=0.0, stops=False, relative_beta=0.0)


def old(name, path):
    if name == "append":
        write_jsonl(RESULTS, path)
    else:
        write(name, path)


def write(name, path):
    turn = next(TURNS) % 2
    if name in ("yaml", "json"):
        CONFIGS[turn].to_file(path)
    elif name == "jsonl":
        write_jsonl([RESULTS[turn]] * 40, path)
    elif name == "append":
        write_jsonl([RESULTS[turn]], path, append=True)
    elif name == "html":
        write_file(path, "ab"[turn] * 400_000, "report")
    elif name == "checkpoint":
        StageCheckpoint(path, {"settings": "ab"[turn] * 400_000}).save(FITTER)
    elif name == "head":
        value = float(turn)
        weights, biases = [torch.full((1, 90_000), value)], [torch.full((1,), value)]
        ValueHead((1,), "last", weights, biases, {}, {"value": value}).save(path)
    elif name == "array":
        save_array(path, np.full(90_000, turn))


def check(name, path):
    if name in ("yaml", "json"):
        assert StarsConfig.from_file(path) in CONFIGS
    elif name == "jsonl":
        found = list(read_jsonl(path))
        assert len(found) == 40 and found[0] in RESULTS and found == [found[0]] * 40
    elif name == "append":
        assert all(result in RESULTS for result in read_jsonl(path))
    elif name == "html":
        assert path.read_text() in ("a" * 400_000, "b" * 400_000)
    elif name == "checkpoint":
        assert json.loads(path.read_text())["settings"]["settings"] in ("a" * 400_000, "b" * 400_000)
    elif name == "head":
        found = ValueHead.load(path)
        assert found.biases[0].item() == found.about["value"]
        assert (found.weights[0] == found.biases[0]).all()
    elif name == "array":
        assert len(set(np.load(path))) == 1
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["yaml", "json", "jsonl", "append", "html", "checkpoint", "head", "array"]
)
def test_a_killed_process_leaves_the_old_or_the_new_file(
    tmp_path: Path, one: StarsResult, name: str
) -> None:
    results = tmp_path / "results"
    write_jsonl([one, one.replace(text=LONG)], results)
    code = KILLED_WRITERS.replace('"RESULTS"', repr(str(results)))
    (tmp_path / "test_disks_writers.py").write_text(code)
    path = tmp_path / f"file.{name}"
    run = subprocess.run(
        [sys.executable, "-c", KILLED, name, str(path), "40"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )
    assert run.stdout == "whole\n", run.stderr


def test_parts_and_lines_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    write_parts(path, (bytes([65 + i % 26]) * i for i in range(500)), "parts")
    assert path.stat().st_size == sum(range(500))
    append_lines(path, b"end\n", "parts", is_whole=lambda _: True)
    assert path.read_bytes().endswith(b"\nend\n")


@pytest.mark.parametrize("content", ["\u0000" * 40, "[" * 1000, "not a trace"])
def test_a_file_of_another_kind_is_not_a_truncated_trace(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.jsonl"
    for encoding in ("utf-8", "utf-16"):
        path.write_bytes(content.encode(encoding))
        with pytest.raises(ConfigError, match="line 1 is not a result"):
            list(read_jsonl(path))
