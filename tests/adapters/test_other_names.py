"""Keywords of other providers follow one rule in all adapters, in constructors and calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool

import langchain_stars
import llamaindex_stars
from stars_engine import ConfigError
from stars_engine.integrations import OTHER_NAMES, REMOTE
from tests.support.scripted import scripted

ROOT = Path(__file__).parents[2]
SAID = "one two three four five six"
REFUSED = ("logprobs", "top_logprobs", "model_kwargs", "safety_settings")
KINDS = [langchain_stars.StarsLLM, langchain_stars.ChatStars, llamaindex_stars.StarsLLM]


def judge(prompt: str, completion: str) -> float:
    return 1.0


@pytest.fixture(scope="module")
def model() -> Any:
    return scripted(lambda _: SAID)


@pytest.fixture(params=KINDS, ids=["llm", "chat", "index"])
def adapter(request: pytest.FixtureRequest, model: Any) -> Iterator[Callable[..., Any]]:
    made = []

    def make(**given: Any) -> Any:
        fields = {"schedule": {"kind": "none"}, "num_candidates": 1, "seed": 0}
        made.append(request.param(model=model, reward=judge, **(fields | given)))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def ask(llm: Any, **given: Any) -> str:
    if isinstance(llm, langchain_stars.StarsLLM):
        return llm.invoke("Count.", **given)
    if isinstance(llm, langchain_stars.ChatStars):
        return llm.invoke("Count.", **given).text
    return llm.chat([ChatMessage("Count.")], **given).message.content or ""


@pytest.mark.parametrize("other", sorted(OTHER_NAMES))
def test_another_name_of_a_setting_sets_it(adapter: Callable[..., Any], other: str) -> None:
    name = OTHER_NAMES[other]
    value: Any = {"stop": ["four"], "max_tokens": 3, "deadline_s": 1e-6}[name]
    said = ask(adapter(), **{other: value})
    assert said == ask(adapter(), **{name: value}) == ask(adapter(**{other: value}))
    assert SAID.startswith(said)
    assert said != SAID
    assert adapter(**{other: value}).settings() == adapter(**{name: value}).settings()
    assert ask(adapter(), **{other: None}) == SAID  # other providers: not given
    assert ask(adapter(), **{other: value, name: value}) == said
    for call in (adapter, lambda **given: ask(adapter(), **given)):
        with pytest.raises(ConfigError, match=f"{other}=.* is another name for {name}"):
            call(**{other: value, name: 7.0 if name == "deadline_s" else 7})


def test_keywords_about_servers_are_dropped(adapter: Callable[..., Any]) -> None:
    given = dict.fromkeys(REMOTE, "x")
    with pytest.warns(UserWarning, match="for remote models") as made:
        assert adapter(**given).settings() == adapter().settings()
    assert names_in(made) == set(REMOTE)
    llm = adapter()
    with pytest.warns(UserWarning, match="for remote models") as called:
        assert ask(llm, **given) == SAID
    assert names_in(called) == set(REMOTE)
    assert ask(llm, **dict.fromkeys(REMOTE)) == SAID  # None: not given


def names_in(warned: Any) -> set[str]:
    """The keywords that warnings begin with."""
    return {str(each.message).split(" is for remote models", maxsplit=1)[0] for each in warned}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_an_error(adapter: Callable[..., Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        adapter(**{name: {}})
    with pytest.raises(ConfigError, match=name):
        ask(adapter(), **{name: {}})


def test_langchain_reads_them_wherever_keywords_are_given(model: Any) -> None:
    given: dict[str, Any] = {"model": model, "reward": judge, "schedule": {"kind": "none"}}
    chat = langchain_stars.ChatStars(**given, num_candidates=1)
    llm = langchain_stars.StarsLLM(**given, num_candidates=1)
    cut = SAID.split("four", maxsplit=1)[0]
    assert chat.bind(stop_sequences=["four"]).invoke("Count.").text == cut
    assert llm.generate(["Count."], stop_sequences=["four"]).generations[0][0].text == cut
    assert "".join(llm.stream("Count.", stop_sequences=["four"])) == cut
    with pytest.raises(ConfigError, match="logprobs"):
        chat.bind(logprobs=True)
    with pytest.raises(ConfigError, match="another name for stop"):
        chat.invoke("Count.", stop=["five"], stop_sequences=["four"])
    bound: Any = chat.with_structured_output({"type": "object"}, stop_sequences=["four"])
    assert bound.first.kwargs["stop"] == ["four"]
    chat.close()


def test_llamaindex_reads_them_wherever_keywords_are_given(model: Any) -> None:
    fields: dict[str, Any] = {"model": model, "reward": judge, "schedule": {"kind": "none"}}
    cut = SAID.split("four", maxsplit=1)[0]
    with pytest.warns(UserWarning, match="api_base is for remote models"):
        llm = llamaindex_stars.StarsLLM(
            **fields,
            num_candidates=1,
            additional_kwargs={"stop_sequences": ["four"], "api_base": "http://lm"},
        )
    assert llm.additional_kwargs == {"stop": ["four"]}
    assert llm.chat([ChatMessage("Count.")]).message.content == cut
    llm = llamaindex_stars.StarsLLM(**fields, num_candidates=1)
    given: dict[str, Any] = {"stop_sequences": ["four"]}
    assert llm.complete("Count.", **given).text == cut
    assert "".join(part.delta or "" for part in llm.stream_complete("Count.", **given)) == cut
    tools = [FunctionTool.from_defaults(abs, name="absolute", description="of a number")]
    said = llm.chat_with_tools(tools, user_msg="Count.", **given)
    assert said.message.content == cut
    with pytest.raises(ConfigError, match="logprobs"):
        llamaindex_stars.StarsLLM(**fields, additional_kwargs={"logprobs": True})
    llm.close()


@pytest.mark.parametrize("page", ["langchain.md", "llamaindex.md"])
def test_the_documentation_lists_the_names(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert [name for name in (*OTHER_NAMES, *REMOTE) if f"`{name}`" not in text] == []
