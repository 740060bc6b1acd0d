"""Caches of LangChain: what is in memory belongs to one process, and so do its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from langchain_stars import ChatStars, StarsLLM
from stars_engine import StarsConfig
from stars_engine.integrations import identity, short_identity
from tests.support.processes import run_python

PROCESS = """
import json, sqlite3, sys
from langchain_core.caches import BaseCache
from langchain_core.load import dumps, loads
from langchain_stars import ChatStars, StarsLLM

class OnDisk(BaseCache):
    def __init__(self, path):
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.execute("CREATE TABLE IF NOT EXISTS answers (prompt, llm, answer)")
    def lookup(self, prompt, llm_string):
        where = "SELECT answer FROM answers WHERE prompt = ? AND llm = ?"
        found = self.db.execute(where, (prompt, llm_string)).fetchone()
        return found and loads(found[0], allowed_objects="core")
    def update(self, prompt, llm_string, value):
        self.db.execute(
            "INSERT INTO answers VALUES (?, ?, ?)", (prompt, llm_string, dumps(list(value)))
        )
    def clear(self, **kwargs):
        pass

path, sign = sys.argv[1], float(sys.argv[2])
reward = lambda prompt, completion: sign * completion.count("e")
given = dict(
    cache=OnDisk(path), max_tokens=16, seed=1, model="stars:embedded-lm", num_candidates=8,
    schedule={"kind": "constant", "value": 4.0 * sign},
)
said = [
    StarsLLM(**given, reward=reward).invoke("The film"),
    ChatStars(**given, reward=reward).invoke("The film").text,
    StarsLLM(**given, reward="stars:embedded-reward").invoke("The film", reward=reward),
    ChatStars(**given, reward="stars:embedded-reward").invoke("The film", reward=reward).text,
]
print(json.dumps(said))
"""

IDENTITY = """
from stars_engine import StarsConfig
from stars_engine.integrations import identity, short_identity
for reward in (lambda prompt, completion: 1.0, "math:floor"):
    config = StarsConfig(model="a/b", reward=reward)
    print(identity(config)["reward"]["function"], short_identity(config)["digest"], sep="|")
"""


def values_of_call(llm: Any, **kwargs: Any) -> str:
    return str(llm._get_llm_string(**kwargs))


@pytest.mark.slow
def test_processes_do_not_share_answers_under_rewards_in_memory(tmp_path: Path) -> None:
    said = []
    for sign in (1, -1):
        done = run_python(PROCESS, str(tmp_path / "cache.db"), str(sign), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout))
    for first, second in zip(*said, strict=True):
        assert first != second


@pytest.mark.slow
def test_an_object_in_memory_has_an_identity_of_one_process() -> None:
    [first, second] = [run_python(IDENTITY).stdout.splitlines() for _ in range(2)]
    assert first[1] == second[1]
    assert first[1].startswith("math:floor|")
    ours = [part.split(" of process ")[0] for part in (first[0], second[0])]
    assert ours[0] == ours[1]
    assert set(first[0].split("|")).isdisjoint(second[0].split("|"))


def test_keys_depend_on_objects_in_calls_and_not_on_their_addresses() -> None:
    chat = ChatStars(model="stars:embedded-lm", reward=len, schedule={"kind": "none"})
    keys = {values_of_call(chat), values_of_call(chat, reward=max), values_of_call(chat, seed=3)}
    tool = {"type": "function", "function": {"name": "a", "parameters": {}}}
    keys.add(values_of_call(chat, tools=[tool]))
    assert len(keys) == 4
    assert values_of_call(chat, reward=max) in keys
    assert "0x" not in "".join(keys)


def test_the_short_identity_is_as_unique_as_the_whole() -> None:
    config = StarsConfig()
    for other in (StarsConfig(sampling={"seed": 1}), StarsConfig(prompt_format="raw")):
        assert short_identity(config)["digest"] != short_identity(other)["digest"]
        assert identity(config) != identity(other)
    assert len(str(short_identity(config))) < 400
    assert StarsLLM(seed=1)._identifying_params["seed"] == 1
