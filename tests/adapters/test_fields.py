"""Fields of adapters: types, defaults and descriptions of the config's fields."""

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
    ClassifierReward,
    EngineParams,
    SamplingParams,
    StarsConfig,
)
from stars_engine.config.flat import FLAT_FIELDS, PARTS
from stars_engine.integrations import UNSET, EngineFields
from tests.support.chat_templates import tokenizer_of
from tools.adapter_fields import TARGET, source

ROOT = Path(__file__).parents[2]
GOOD = """
from langchain_stars import ChatStars, StarsLLM
from llamaindex_stars import StarsLLM as IndexLLM
from stars_engine import ConstantSchedule, JsonGrammar, StarsConfig, TransformersModel

def judge(prompt: str, completion: str) -> float:
    return 1.0

chat = ChatStars(
    model="a/b", reward=judge, temperature=0.5, top_k=None, stop=["x"], seed=7, timeout=5.0,
    schedule=ConstantSchedule(value=1.0), grammar=JsonGrammar(), num_candidates="auto",
)
llm = StarsLLM(config=StarsConfig(), max_tokens=48, schedule={"kind": "none"}, logit_bias={13: -5})
index = IndexLLM(model=TransformersModel(name_or_path="a/b"), reward=judge, on_overflow="clamp")
value: float = chat.temperature
count: int | None = index.top_k
"""
BAD = {
    'ChatStars(temperature="hot")': 'expected "float"',
    'StarsLLM(max_tokens="many")': 'expected "int"',
    'IndexLLM(on_overflow="explode")': "Literal['raise', 'clamp']",
    "IndexLLM(temprature=0.5)": 'did you mean "temperature"',
    "ChatStars(temprature=0.5)": 'did you mean "temperature"',
    "text: str = ChatStars().temperature": 'expression has type "float"',
    'IndexLLM().top_k = "x"': 'variable has type "int | None"',
}
# Packages that no field of an adapter depends on take most of the time.
SETTINGS = """
[mypy]
strict = True
follow_imports = silent
[mypy-torch.*,transformers.*,numpy.*,langgraph.*,langsmith.*,sqlalchemy.*,nltk.*,networkx.*]
follow_imports = skip
"""
KINDS = [langchain_stars.StarsLLM, langchain_stars.ChatStars, llamaindex_stars.StarsLLM]


@pytest.fixture(params=KINDS, ids=["llm", "chat", "index"])
def adapter(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_written_fields_are_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == source(), "run python tools/adapter_fields.py"
    for part in PARTS.values():
        for name, field in part.model_fields.items():
            ours = EngineFields.model_fields[name]
            assert (ours.description, ours.default) == (field.description, field.default)


@pytest.mark.slow
def test_type_checkers_know_the_fields(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    imports = GOOD.split("def judge", maxsplit=1)[0]
    (tmp_path / "bad.py").write_text(imports + "\n".join(BAD))
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    # A cache of its own: runs with other settings do not invalidate it.
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache" / "scripts")]
    command += ["good.py", "bad.py"]
    environment = {"MYPYPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    found = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(found) == len(BAD), done.stdout + done.stderr
    for line, expected in zip(found, BAD.values(), strict=True):
        assert line.startswith("bad.py")
        assert expected in line


def test_unset_fields_read_the_config(adapter: Callable[..., Any]) -> None:
    config = StarsConfig(
        sampling=SamplingParams(seed=3), align=AlignParams(beta=0.5), engine=EngineParams()
    )
    llm = adapter(config=config, temperature=0.25)
    assert (llm.temperature, llm.seed, llm.beta) == (0.25, 3, 0.5)
    assert (llm.top_k, llm.stop, llm.max_rows) == (40, (), EngineParams().max_rows)
    assert llm.model.name_or_path == "stars:embedded-lm"
    assert isinstance(llm.reward, ClassifierReward)
    llm.seed = None  # it is set, although its value is None
    assert (llm.seed, llm.settings().sampling.seed) == (None, None)
    assert adapter(config=config, seed=UNSET).seed == 3
    assert llm.model_copy(update={"config": StarsConfig(), "top_k": 5}).beta != 0.5
    with pytest.raises(AttributeError, match="no_such"):
        _ = llm.no_such


def test_unset_fields_read_the_files_of_the_model() -> None:
    model = {"name_or_path": "stars:embedded-lm", "chat_template": "{{ messages[0].content }}"}
    reward = lambda prompt, completion: 1.0  # noqa: E731
    config = StarsConfig(model=model, reward=reward, sampling="model")
    llm = llamaindex_stars.StarsLLM(config=config)
    assert llm.temperature == llm.engine().sampling.temperature
    assert langchain_stars.ChatStars(model=model, reward=reward).max_tokens == 512
    assert tokenizer_of("hermes").chat_template


def test_copies_and_dumps_hold_what_was_set(adapter: Callable[..., Any]) -> None:
    llm = adapter(temperature=0.25)
    for copied in (llm.model_copy(), copy.deepcopy(llm), pickle.loads(pickle.dumps(llm))):
        assert copied.model_fields_set & FLAT_FIELDS == {"temperature"}
        assert copied.top_k == 40
    assert FLAT_FIELDS & llm.model_dump().keys() == {"temperature"}
    assert repr(llm) == f"{adapter.__name__}(temperature=0.25)"


def test_the_json_schema_describes_the_fields(adapter: Callable[..., Any]) -> None:
    properties = adapter.model_json_schema()["properties"]
    assert properties.keys() >= FLAT_FIELDS
    temperature = properties["temperature"]
    assert (temperature["type"], temperature["default"]) == ("number", 0.8)
    assert "0 is greedy" in temperature["description"]
