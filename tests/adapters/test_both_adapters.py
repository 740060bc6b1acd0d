"""Behaviour common to both adapters: fields, settings per call, usage, streams, one engine."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import langchain_stars
import llamaindex_stars
from stars_engine import (
    AlignParams,
    Alternative,
    ConfigError,
    ConstantSchedule,
    EngineParams,
    SamplingParams,
    StarsConfig,
)
from stars_engine.config.flat import FLAT_FIELDS
from stars_engine.integrations import MAX_ENGINES, UNSET, EngineFields
from tests.support.adapters import FIELDS, PROMPT, SETTINGS
from tests.support.processes import run_python

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_runtime")


@pytest.fixture(params=[langchain_stars.StarsLLM, llamaindex_stars.StarsLLM])
def adapter(request: pytest.FixtureRequest) -> Any:
    return request.param


def ask(llm: Any, prompt: str = PROMPT, **settings: Any) -> str:
    """One answer, from either framework."""
    if isinstance(llm, langchain_stars.StarsLLM):
        return llm.invoke(prompt, **settings)
    return llm.complete(prompt, **settings).text


# --- fields ---


def test_every_setting_is_a_field() -> None:
    assert EngineFields.model_fields.keys() == FLAT_FIELDS | {"config", "trace"}


@pytest.mark.slow
def test_equal_settings_give_equal_text_everywhere(
    adapter: Callable[..., Any], expected: str, tmp_path: Path
) -> None:
    config = StarsConfig(sampling=SamplingParams(**SETTINGS))
    config.to_file(tmp_path / "stars.yaml")
    assert ask(adapter(**FIELDS)) == expected
    assert ask(adapter(config=config)) == expected
    assert ask(adapter.from_file(tmp_path / "stars.yaml")) == expected
    assert ask(adapter(config=config, seed=8)) != expected
    assert ask(adapter(config=config, seed=8), seed=7) == expected
    assert ask(adapter(), **SETTINGS) == expected


def test_alternatives_are_a_field(adapter: Callable[..., Any]) -> None:
    given = {"opening": " is wonderful", "share": 1.0}
    llm = adapter(**{**FIELDS, "alternatives": [given], "segment_len": 8})
    assert llm.settings().align.alternatives == (Alternative(**given),)
    assert ask(llm).startswith(" is wonderful")
    assert adapter(alternatives=[Alternative(**given)]).settings().align.alternatives
    with pytest.raises(ConfigError, match="share"):
        adapter(alternatives=[{"opening": "a", "share": 2.0}])


def test_none_is_a_value(adapter: Callable[..., Any]) -> None:
    assert adapter(top_k=None).settings().sampling.top_k is None
    assert adapter(top_k=UNSET).settings().sampling.top_k == SamplingParams().top_k
    assert adapter().settings() == StarsConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temprature": 0.5}, "did you mean `temperature`"),
        ({"align": "safe"}, r"use config=StarsConfig\(align=\.\.\.\)"),
        ({"preset": "guard"}, "which takes the name of a preset"),
        ({"max_tokens": 0}, "max_tokens: 0 is not allowed"),
        ({"model": "a/model"}, "reward is required"),
        ({"config": {"align": {"beta": -1}}}, "beta"),
    ],
)
def test_bad_values_are_reported_at_construction(
    adapter: Callable[..., Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter(**values)


def test_unknown_and_invalid_call_arguments_raise(adapter: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="did you mean `segment_len`"):
        ask(adapter(), segment_length=4)
    with pytest.raises(ConfigError, match="beta"):
        ask(adapter(), beta=-1)


def test_other_models_need_thresholds_of_their_own(adapter: Callable[..., Any]) -> None:
    llm = adapter(
        model="stars:embedded-lm",
        reward=lambda prompt, completion: float(len(completion)),
        schedule={"kind": "constant", "value": 1.0},
        **FIELDS,
    )
    assert ask(llm)
    llm.close()


@pytest.mark.slow
def test_copies_share_the_engine(adapter: Callable[..., Any], expected: str) -> None:
    llm = adapter(**FIELDS)
    for again in (
        copy.deepcopy(llm),
        pickle.loads(pickle.dumps(llm)),
        llm.model_copy(update={"seed": 7}),
    ):
        assert ask(again) == expected
    llm.close()
    assert ask(llm) == expected  # closed adapters get their engine anew


def test_the_reward_model_may_read_another_prompt(adapter: Callable[..., Any]) -> None:
    seen = set()

    def note(prompt: str, completion: str) -> float:
        seen.add(prompt)
        return 1.0

    llm = adapter(model="stars:embedded-lm", reward=note, schedule={"kind": "none"}, max_tokens=8)
    ask(llm, "Long context. Was it good?", reward_prompt="Was it good?")
    assert seen == {"Was it good?"}
    llm.close()


# --- the package ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("langchain_stars", "torch transformers llama_index"),
        ("llamaindex_stars", "torch transformers langchain_core"),
    ],
)
def test_importing_an_adapter_is_light(package: str, others: str) -> None:
    code = (
        f"import sys, {package} as package; package.StarsLLM(max_tokens=8)\n"
        f"found = set({others.split()!r}) & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("package", "framework", "extra"),
    [
        ("langchain_stars", "langchain_core", "langchain"),
        ("llamaindex_stars", "llama_index", "llamaindex"),
    ],
)
def test_a_missing_framework_names_its_extra(package: str, framework: str, extra: str) -> None:
    code = f"import sys; sys.modules[{framework!r}] = None\nimport {package}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"pip install -e '.[{extra}]'" in done.stderr


# An example that evaluates a running server with a package that the tests do not need.
OF_SERVERS = ROOT / "examples/serve_evaluation.py"
EXAMPLES = sorted({*(ROOT / "examples").glob("*.py")} - {OF_SERVERS})
REPORTS = {"guards.py": "refused by the guard"}


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    code = example.read_text(encoding="utf-8")
    done = run_python(code, cwd=tmp_path, script=example)
    assert done.returncode == 0, done.stderr
    assert REPORTS.get(example.name, "reward:") in done.stdout


def test_limits_of_the_shared_engine_are_fields(adapter: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="max_rows"):
        ask(adapter(max_rows=3, **FIELDS))
    assert adapter(on_full="raise").settings().engine == EngineParams(on_full="raise")


# --- engines of copies and of calls ---


def test_a_copy_has_engines_of_its_own(adapter: Callable[..., Any]) -> None:
    llm = adapter(**FIELDS)
    mine = llm.engine()
    never = AlignParams(schedule=ConstantSchedule(value=1e9), max_attempts=10_000)
    for copied in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy(update={"seed": 8})):
        assert copied.engine() is not mine
        assert copied.engine()._runtime is mine._runtime
        copied.close()
        assert llm.engine() is mine
        assert not mine.closed
    future = mine.submit(PROMPT, align=never)
    llm.model_copy().close()
    assert not future.done()
    future.cancel()


@pytest.mark.slow
def test_a_call_with_other_models_leaves_the_engine_of_the_object_alone(
    adapter: Callable[..., Any],
) -> None:
    llm = adapter(**FIELDS)
    own = llm.engine()
    text = ask(llm)
    made = []
    for _ in range(2 * MAX_ENGINES):
        reward = lambda prompt, completion: 1.0  # noqa: E731 - another one each time
        ask(llm, reward=reward, schedule={"kind": "none"}, model="stars:embedded-lm")
        made.append(llm._engines[-1])
        assert llm.engine() is own
        assert len(llm._engines) <= MAX_ENGINES
    assert ask(llm) == text
    llm.close()
    assert own.closed
    assert all(engine.closed for engine in made[-MAX_ENGINES + 1 :])
    assert ask(llm) == text  # anew
    llm.close()
