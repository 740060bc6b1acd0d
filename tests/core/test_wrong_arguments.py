"""Arguments that people try: what an engine accepts, and what its errors say."""

from __future__ import annotations

from typing import Any

import pytest

import stars_engine
from stars_engine import (
    AlignParams,
    Chat,
    ConfigError,
    LinearSchedule,
    PromptError,
    SamplingParams,
    StarsEngine,
    TransformersModel,
)


def test_sampling_may_be_the_second_argument(engine: StarsEngine) -> None:
    sampling = SamplingParams(max_tokens=4, seed=1)
    align = engine.config.align.replace(num_candidates=4)
    [named] = engine.generate("A film", sampling=sampling, align=align)
    assert engine.generate("A film", sampling, align=align)[0].text == named.text
    *_, last = engine.stream("A film", sampling, align=align)
    assert last.result is not None
    assert last.result.text == named.text
    wrong: Any = "Another film"
    with pytest.raises(ConfigError, match=r"sampling: str is not allowed.*SamplingParams"):
        engine.generate("A film", wrong)


def test_a_list_of_lists_of_messages(engine: StarsEngine) -> None:
    conversation: Any = [{"role": "user", "content": "Hello"}]
    with pytest.raises(PromptError, match=r"wrap each conversation, as in Chat"):
        engine.generate([conversation], max_tokens=2)
    answer, error = engine.generate(
        [Chat(conversation), conversation], max_tokens=2, return_exceptions=True
    )
    assert isinstance(answer, stars_engine.StarsResult)
    assert isinstance(error, PromptError)


@pytest.mark.parametrize(
    ("arguments", "named", "words"),
    [
        (("gpt2",), {}, r"config: str is not allowed.*StarsConfig\(model="),
        (({"model": "gpt2"},), {}, r"config: dict is not allowed"),
        ((TransformersModel(name_or_path="gpt2"),), {}, r"TransformersModel is not allowed"),
        ((), {"model": "gpt2"}, r"model: 'gpt2' is not allowed.*StarsConfig\(model='gpt2'"),
        ((), {"reward": "gpt2"}, r"reward: 'gpt2' is not allowed.*StarsConfig\(reward='gpt2'"),
    ],
)
def test_an_engine_needs_a_config(
    arguments: tuple[Any, ...], named: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        StarsEngine(*arguments, **named)
    if arguments:
        with pytest.raises(ConfigError, match=words):
            StarsEngine.shared(*arguments)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_tokn", "did you mean `max_tokens`"),
        ("temp", "did you mean `temperature`"),
        ("threshold", r"use schedule=ConstantSchedule\(value="),
        ("target", r"use schedule=LinearSchedule\(target="),
        ("preset", r"use align=\.\.\., which takes the name of a preset"),
        ("tools", r"use Chat\(\[\.\.\.\], tools=\.\.\.\)"),
        ("nonsense", "use one of these"),
    ],
)
def test_hints_for_unknown_fields_of_a_call(engine: StarsEngine, name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        engine.generate("A film", **{name: 1})


def test_hints_for_unknown_fields_and_names() -> None:
    wrong: dict[str, Any] = {"name": "x"}
    with pytest.raises(ConfigError, match="did you mean `name_or_path`"):
        TransformersModel(**wrong)
    with pytest.raises(ConfigError, match=r"for example, tools=\[\{'name': 'weather'"):
        Chat([{"role": "user", "content": "A"}], tools=[print])
    with pytest.raises(ConfigError, match="use one of these"):
        AlignParams(max=3, schedule=LinearSchedule(target=1))  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="Did you mean: 'SamplingParams'"):
        _ = stars_engine.SamplingParam
