"""The command `stars serve` as a process."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from stars_engine.cli.app import app
from stars_engine.cli.serve import _read_keys, read_configs
from stars_engine.errors import ConfigError
from stars_engine.server.sockets import bind
from tests.support.server_commands import command


@pytest.mark.slow
def test_a_wrong_option_ends_the_command_with_status_2() -> None:
    with command("--port", "99999") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "port" in errors


@pytest.mark.slow
def test_the_command_ends_if_nothing_can_be_loaded(tmp_path: Path) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text(
        f"model: {tmp_path}\nreward: {tmp_path}\nalign: {{schedule: {{kind: none}}}}\n"
    )
    with command("--config", str(config)) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "The model 'broken' could not be loaded" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "99999"], "port"),
        (["--cors-origin", "nonsense"], "not an origin"),
        (["--config", "a=x.yaml", "--config", "a=y.yaml"], "x.yaml"),
        (["--api-keys", "no-such-file"], "no-such-file"),
        (["--max-requests-per-key", "0"], "max_requests_per_key"),
        (["--tokens-per-minute-per-key", "0"], "tokens_per_minute_per_key"),
    ],
)
def test_wrong_options(options: list[str], message: str) -> None:
    run = CliRunner().invoke(app, ["serve", *options])
    assert run.exit_code != 0
    assert message in f"{run.output} {run.exception}"


def test_names_of_models(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("sampling: {max_tokens: 8}\n")
    files = [str(tmp_path / "a.yaml"), f"other={tmp_path / 'b.yaml'}"]
    configs: dict[str, Any] = read_configs(files, allow_imports=True)
    assert list(configs) == ["a", "other"]
    assert list(read_configs([], allow_imports=True)) == ["embedded"]
    (tmp_path / "lr=0.1").mkdir()
    file = tmp_path / "lr=0.1" / "a.yaml"
    file.write_text("sampling: {max_tokens: 8}\n")
    assert list(read_configs([str(file)], allow_imports=True)) == ["a"]
    assert list(read_configs([f"b={file}"], allow_imports=True)) == ["b"]
    with pytest.raises(Exception, match="names must be unique"):
        read_configs([files[0], files[0]], allow_imports=True)


@pytest.mark.parametrize(("option", "part"), [("a=", "file"), ("=a.yaml", "name"), ("=", "name")])
def test_a_config_needs_a_name_and_a_file(option: str, part: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"'{option}' lacks a {part}. Hint: use --config"):
        read_configs([option], allow_imports=True)


def test_a_port_that_is_in_use_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = CliRunner().invoke(app, ["serve", "--port", str(port)])
    assert isinstance(run.exception, ConfigError)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in str(run.exception)
    assert run.exception.hint.startswith("choose another port")
    with pytest.raises(ConfigError, match="is no address of this machine"):
        bind("no-such-host.invalid", 0)


def test_all_addresses_of_a_name_get_one_port() -> None:
    sockets = bind("localhost", 0)
    assert len({each.getsockname()[1] for each in sockets}) == 1
    for each in sockets:
        each.close()


def test_files_of_keys_that_everybody_may_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-0123456789abcdef\n")
    for mode, warned in ((0o600, False), (0o644, True)):
        file.chmod(mode)
        assert len(_read_keys(file)) == 1
        assert ("every user may read" in capsys.readouterr().err) == warned


def test_a_variable_of_keys_without_a_key_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was meant to need keys must not be open."""
    for text in ("", " \n"):
        monkeypatch.setenv("STARS_API_KEYS", text)
        with pytest.raises(ConfigError, match="STARS_API_KEYS: there is no key"):
            _read_keys(None)
    monkeypatch.delenv("STARS_API_KEYS")
    assert len(_read_keys(None)) == 0
