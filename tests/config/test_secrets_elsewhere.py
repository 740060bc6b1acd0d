"""Secrets of servers, evaluations, traces and pages; those of checkpoints are in `test_secrets`."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from langchain_stars import ChatStars
from stars_engine import (
    AlignParams,
    ConfigError,
    ModelLoadError,
    OpenAIServerModel,
    SamplingParams,
    ServerProcessReward,
    ServerReward,
    ServerYesNoReward,
    StarsConfig,
    StarsEngine,
    StarsError,
    ValueReward,
    VLLMModel,
)
from stars_engine.cli.app import app
from stars_engine.config.flat import check_names
from stars_engine.display.results import results_page
from stars_engine.evaluation import Recipe
from stars_engine.evaluation.store import identity, name_of
from stars_engine.files.config_files import text_of
from stars_engine.integrations import identity as adapter_identity
from stars_engine.loading.vllm import load_vllm
from stars_engine.redaction import MASK
from stars_engine.runtime.registry import key_of
from stars_engine.server.settings import ApiKeys
from stars_engine.trace import write_jsonl
from tests.support.secrets import (
    CONSTANT,
    KEY,
    LOCAL,
    MODEL,
    OTHER,
    PASSWORD,
    TOKEN,
    leaks,
    planted,
)

SERVER: dict[str, Any] = {
    "base_url": "http://lm:8000",
    "tokenizer_name_or_path": "stars:embedded-lm",
    "api_key": KEY,
}
SERVED = {
    "model": OpenAIServerModel(**SERVER),
    "reward": ServerReward(**SERVER),
    "yes or no": ServerYesNoReward(**SERVER, preset="llama-guard"),
    "process": ServerProcessReward(**SERVER, convention="skywork-prm"),
}


def served() -> StarsConfig:
    parts = {name: {"reward": SERVED[name]} for name in ("reward", "yes or no", "process")}
    reward = {"kind": "composite", "parts": parts}
    return StarsConfig(model=SERVED["model"], reward=reward, align=CONSTANT)


def recipe() -> Recipe:
    return Recipe(
        name="planted",
        config=served(),
        judges={"server": SERVED["reward"], "checkpoint": {"kind": "classifier", **MODEL}},
        arms={"vanilla": {"kind": "vanilla"}, "other": {"kind": "stars", "model": MODEL}},
    )


KINDS = [*SERVED, "config", "recipe"]


@pytest.mark.parametrize("kind", KINDS)
def test_servers_and_recipes_hide_secrets(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    made: Any = {**SERVED, "config": served(), "recipe": recipe()}[kind]
    caplog.set_level(logging.DEBUG)
    logging.getLogger("application").warning("%s %r", made, made)
    ways: dict[str, object] = {
        "repr": repr(made),
        "str": str(made),
        "format": f"{made}",
        "dict": dict(made),
        "dump": made.model_dump(),
        "json": made.model_dump_json(),
        "pickle": pickle.dumps(made),
        "state": made.__getstate__(),
        "identity": identity(made),
        "evaluation": text_of(made, fallback=name_of),
        "log": caplog.text,
    }
    if kind == "config":
        ways |= {"hash": made.content_hash(), "adapters": adapter_identity(made)}
    if kind in SERVED:
        ways["key"] = key_of(made)
    assert {way: leaks(shown) for way, shown in ways.items() if leaks(shown)} == {}
    assert MASK in str(ways["dump"])


def test_arguments_of_vllm_hide_secrets(tmp_path: Path) -> None:
    config = VLLMModel(name_or_path="a/b", engine_kwargs={"hf_token": TOKEN, "block_size": 16})
    shown = [repr(config), repr(config.model_dump()), config.model_dump_json(), key_of(config)]
    assert leaks("".join(shown) + repr(pickle.dumps(config))) == []
    assert config.content_hash() != config.replace(engine_kwargs={"hf_token": OTHER}).content_hash()
    with pytest.raises(ConfigError, match="engine_kwargs: holds"):
        StarsConfig(model=config, reward="a/b").to_file(tmp_path / "stars.yaml")
    again = pickle.loads(pickle.dumps(config))
    assert again.engine_kwargs["block_size"] == 16
    with pytest.raises(ModelLoadError, match="a secret is missing, because pickles do not contain"):
        load_vllm(again, "generate")


@pytest.mark.parametrize("name", ["tokn", "toke", "api_kye", "apikey", "hftoken", "passw"])
def test_values_of_misspelled_fields_are_hidden(name: str) -> None:
    value = "Zq8vT2mLw4Xc9Rp1"  # which only its name could give away
    for make in (
        lambda: StarsConfig(model={**LOCAL, name: value}),
        lambda: StarsConfig(reward={"kind": "classifier", "name_or_path": "a/b", name: value}),
        lambda: ChatStars(**{name: value}),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert value not in str(caught.value)
        assert f"{name}: unknown field" in str(caught.value)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_recipes_with_secrets_are_not_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"recipe{suffix}"
    with pytest.raises(ConfigError, match="api_key_env") as caught:
        recipe().to_file(path)
    fields = {problem.field for problem in caught.value.problems}
    assert {
        "config.model.api_key",
        "config.reward.parts.process.reward.api_key",
        "judges.server.api_key",
        "judges.checkpoint.token",
        "arms.other.model.token",
    } <= fields
    assert not path.exists()
    assert leaks(str(caught.value)) == []


@pytest.mark.parametrize("kind", SERVED)
@pytest.mark.parametrize(
    "fields",
    [
        {"base_url": f"http://user:{PASSWORD}@lm:8000"},
        {"base_url": f"http://lm:8000/v1?token={PASSWORD}#x"},
        {"base_url": ["http://lm:8000", f"http://lm:8001/?key={KEY}"]},
        {"base_url": f"http://gateway:8000/{TOKEN}/v1"},
        {"base_url": f"{KEY}@lm"},
        {"api_key": [KEY]},
        {"api_key": f"{KEY} {PASSWORD}"},
        {"api_key": f"{KEY}\n"},
        {"api_key_env": KEY},
        {"api_key_env": TOKEN},
        {"token": TOKEN},
        {"headers": {"Authorization": f"Bearer {KEY}"}},
        {"served_model": TOKEN},
        {"tokenizer_name_or_path": f"https://u:{PASSWORD}@hub/x"},
        {"ca_file": TOKEN},
        {"timeout_s": KEY},
    ],
)
def test_no_error_of_a_server_shows_a_secret(kind: str, fields: dict[str, Any]) -> None:
    more = {"yes or no": {"preset": "llama-guard"}, "process": {"convention": "skywork-prm"}}
    with pytest.raises(ConfigError) as caught:
        type(SERVED[kind])(**{**SERVER, **more.get(kind, {}), **fields})
    shown = "".join(traceback.format_exception(caught.value))
    assert leaks(shown.replace(repr(fields), "")) == []


@pytest.mark.parametrize("fields", [{"name_or_path": TOKEN}, {"head": KEY, "name_or_path": "x"}])
def test_no_error_of_a_value_head_shows_a_secret(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ValueReward(**fields)
    assert leaks(str(caught.value)) == []


# --- servers that repeat what they were sent ---


class Echo(BaseHTTPRequestHandler):
    """Refuses every request, and quotes its key."""

    def _refuse(self) -> None:
        said = f"invalid key {self.headers['Authorization']}, or password={PASSWORD}".encode()
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = _refuse  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.fixture(scope="module")
def echo() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [401, 400, 500])
@pytest.mark.parametrize("part", ["model", "reward"])
def test_errors_of_servers_hide_secrets(
    echo: ThreadingHTTPServer, status: int, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo.status = status  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{echo.server_address[1]}"
    kind = {"model": OpenAIServerModel, "reward": ServerReward}[part]
    made = kind(**{**SERVER, "base_url": url, "http_retries": 0})
    config = StarsConfig(model="stars:embedded-lm", reward="stars:embedded-reward", align=CONSTANT)
    with pytest.raises(StarsError) as caught, StarsEngine(config.replace(**{part: made})) as own:
        own.generate(["A"], sampling=SamplingParams(max_tokens=4))
    assert leaks("".join(traceback.format_exception(caught.value))) == []
    assert leaks(caplog.text) == []


# --- what is written and shown of answers ---


@pytest.mark.slow
def test_traces_and_pages_hide_secrets(tmp_path: Path) -> None:
    def reward(prompt: str, completion: str) -> float:
        raise ConnectionError(f"401: key {KEY} at https://u:{PASSWORD}@judge, token='{OTHER}'")

    config = StarsConfig(
        model=LOCAL,
        reward={"kind": "function", "function": reward, "on_failure": "reject"},
        align={**CONSTANT, "max_attempts": 2, "on_exhausted": "stop"},
    )
    with StarsEngine(config) as own:
        results = own.generate(["A"], sampling=SamplingParams(max_tokens=4))
        shown = repr(own) + repr(own.stats()) + repr(own.config)
    trace = tmp_path / "trace.jsonl"
    write_jsonl(results, trace)
    page = results_page(results, trace.name)
    run = CliRunner()
    html = tmp_path / "page.html"
    texts = [run.invoke(app, ["show", str(trace), "--attempts"]).output, trace.read_text(), page]
    assert run.invoke(app, ["show", str(trace), "--html", str(html)]).exit_code == 0
    texts += [html.read_text(), repr(results), results[0]._repr_html_(), shown]
    assert leaks("".join(texts)) == []


def test_keys_of_clients_are_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\nshort-{PASSWORD[:4]}\n")
    with pytest.raises(ConfigError) as caught:
        ApiKeys.from_file(file)
    assert leaks(str(caught.value)) == []
    file.write_text(f"{KEY}\n")
    keys = ApiKeys.from_file(file)
    assert keys.find(KEY)
    assert leaks(repr(keys) + repr(vars(keys)) + str(keys.find(KEY))) == []
    file.write_bytes(KEY.encode() + b"\xff\n")
    with pytest.raises(ConfigError) as caught:
        ApiKeys.from_file(file)
    assert leaks("".join(traceback.format_exception(caught.value))) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "doctor", "calibrate", "compare", "serve"])
def test_commands_refuse_a_broken_file_without_its_secrets(tmp_path: Path, command: str) -> None:
    path = tmp_path / "broken.yaml"
    broken = {
        "model": {**SERVER, "kind": "server", "base_url": f"http://u:{PASSWORD}@lm:8000"},
        "reward": {"kind": "classifier", "name_or_path": "a/b", "token": TOKEN, "sizee": 1},
    }
    if command == "compare":
        broken = {"name": "x", "config": broken, "arms": {"vanilla": {"kind": "vanilla"}}}
    path.write_text(json.dumps(broken))
    arguments = {
        "generate": ["generate", "Hi", "--config", str(path)],
        "doctor": ["doctor", "--config", str(path)],
        "calibrate": ["calibrate", "--config", str(path), "--out", str(tmp_path / "out.yaml")],
        "compare": ["compare", "--recipe", str(path), "--out", str(tmp_path / "out")],
        "serve": ["serve", "--config", str(path)],
    }[command]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code != 0
    assert "base_url" in run.output + str(run.exception)
    shown = "".join(traceback.format_exception(run.exception)) if run.exception else ""
    assert leaks(run.output + shown) == []


def test_planted_configs_are_masked_in_errors_of_adapters_and_engines() -> None:
    for make in (
        lambda: StarsEngine(planted(), planted()),
        lambda: served().replace(align=served()),
    ):  # type: ignore[call-arg, arg-type]
        with pytest.raises((ConfigError, TypeError)) as caught:
            make()
        assert leaks("".join(traceback.format_exception(caught.value))) == []


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"max_token": 5}, "5"),  # resembles `token`, and means `max_tokens`
        ({"tokn": 12345678}, MASK),
        ({"max_token": "hf_abcdefgh"}, MASK),
        ({"api_kye": 12345678}, MASK),
    ],
)
def test_values_of_misspelled_fields(fields: dict[str, Any], shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_names(fields, owner="the call", parts=(SamplingParams, AlignParams))
    assert f"unknown field with the value {shown}" in str(caught.value)
