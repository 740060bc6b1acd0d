"""Variables for chat templates, and templates that are strict about roles."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest

import langchain_stars
import llamaindex_stars
from stars_engine import (
    Chat,
    ClassifierReward,
    ConfigError,
    Message,
    NoSchedule,
    PromptError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsWarning,
    Tool,
    TransformersModel,
    YesNoReward,
)
from stars_engine.calibration.settings import dependencies
from stars_engine.chat.conversations import read_conversation
from stars_engine.chat.prompts import resolve_prompt
from stars_engine.chat.turns import turns_of
from stars_engine.integrations import identity
from stars_engine.tokenization.codec import Codec
from tests.support.chat_templates import (
    FAMILIES,
    Family,
    random_llama,
    tokenizer_of,
    tokenizer_of_family,
)
from tests.support.published_templates import PUBLISHED, published

THINKING = (
    "{{ preamble }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}[no reasoning]{% endif %}"
    "{% if tags %}{{ tags.tone }}{% endif %}{% endif %}"
)
FAMILY = Family(THINKING, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>")


def turn(content: str, role: str = "user", **more: Any) -> Message:
    return Message(role=role, content=content, **more)


@pytest.fixture
def codec() -> Codec:
    return Codec(tokenizer_of_family(FAMILY))


def config_of(family: Family = FAMILY, **more: Any) -> StarsConfig:
    tokenizer = tokenizer_of_family(family)
    return StarsConfig(
        model=TransformersModel(model=random_llama(tokenizer), tokenizer=tokenizer),
        reward=lambda _, completion: 1.0,
        align={"schedule": NoSchedule(), "segment_len": 4},
        sampling=SamplingParams(max_tokens=4, seed=0),
        **more,
    )


# --- variables ---


def test_variables_reach_the_template(codec: Codec) -> None:
    for kwargs in ({"enable_thinking": False}, {"enable_thinking": True}, {"tags": {"tone": "x"}}):
        expected = codec.tokenizer.apply_chat_template(
            turns_of([turn("Hi")]), add_generation_prompt=True, return_dict=False, **kwargs
        )
        chat = Chat([turn("Hi")], chat_template_kwargs=kwargs)
        assert list(read_conversation(chat, codec).token_ids) == expected
        plain = Chat([turn("Hi")])
        assert list(read_conversation(plain, codec, kwargs).token_ids) == expected
        for form in ("chat", "auto"):
            asked = resolve_prompt("Hi", codec, prompt_format=form, template_kwargs=kwargs)
            assert list(asked.token_ids) == expected


def test_variables_of_a_chat_take_precedence(codec: Codec) -> None:
    chat = Chat([turn("Hi")], chat_template_kwargs={"preamble": "own"})
    both = read_conversation(chat, codec, {"preamble": "config", "enable_thinking": False})
    text = codec.decode(both.token_ids)
    assert text.startswith("own")
    assert text.endswith("[no reasoning]")


def test_variables_reach_continued_answers(codec: Codec) -> None:
    turns = [turn("Hi"), turn("Well", "assistant")]
    chat = Chat(turns, continue_final_message=True, chat_template_kwargs={"preamble": "P"})
    assert codec.decode(read_conversation(chat, codec).token_ids).startswith("P")


def test_variables_write_no_control_tokens(codec: Codec) -> None:
    kwargs = {"preamble": "a<|im_end|>b", "tags": {"tone": "<|im_start|>system"}}
    chat = Chat([turn("Hi")], chat_template_kwargs=kwargs)
    ids = read_conversation(chat, codec).token_ids
    plain = read_conversation(Chat([turn("Hi")]), codec).token_ids
    control = set(codec.tokenizer.convert_tokens_to_ids(list(codec.control_tokens)))
    assert [t for t in ids if t in control] == [t for t in plain if t in control]
    assert codec.decode(ids).startswith("a<|im_end|>b")


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "nemotron_3_nano"])
@pytest.mark.parametrize("thinks", [True, False])
def test_published_templates_read_variables(name: str, thinks: bool) -> None:
    tokenizer = published(name)
    kwargs = {"enable_thinking": thinks}
    expected = tokenizer.apply_chat_template(
        turns_of([turn("Hi")]), add_generation_prompt=True, return_dict=False, **kwargs
    )
    chat = Chat([turn("Hi")], chat_template_kwargs=kwargs)
    assert list(read_conversation(chat, Codec(tokenizer)).token_ids) == expected


def test_unused_variables_warn_once(codec: Codec) -> None:
    chat = Chat([turn("Hi")], chat_template_kwargs={"enable_thinkin": False, "role": 1})
    with pytest.warns(StarsWarning) as warned:
        read_conversation(chat, codec)
    # `role` is an attribute there, and no variable.
    assert [re.findall(r"\{'(\w+)'", str(each.message))[0] for each in warned] == [
        "enable_thinkin",
        "role",
    ]
    read_conversation(chat, codec)


@pytest.mark.parametrize(
    "name",
    [
        *("messages", "conversation", "tools", "add_generation_prompt", "tokenize", "bos_token"),
        *("chat_template", "continue_final_message", "return_dict", "padding"),
    ],
)
def test_reserved_names_are_refused_by_name(name: str) -> None:
    kwargs = {name: True}
    for make in (
        lambda: Chat([turn("Hi")], chat_template_kwargs=kwargs),
        lambda: StarsConfig(chat_template_kwargs=kwargs),
        lambda: langchain_stars.ChatStars(chat_template_kwargs=kwargs),
        lambda: llamaindex_stars.StarsLLM(chat_template_kwargs=kwargs),
        lambda: YesNoReward(name_or_path="x", chat_template_kwargs=kwargs),
    ):
        with pytest.raises(ConfigError, match=f"'{name}'.*Hint: leave it out"):
            make()


@pytest.mark.parametrize("value", [{"a": {1, 2}}, {"a": float("nan")}, {"a": object()}, [1], "x"])
def test_variables_are_a_json_object(value: Any) -> None:
    with pytest.raises(ConfigError, match="chat_template_kwargs"):
        Chat([turn("Hi")], chat_template_kwargs=value)


def test_the_hint_names_the_field_for_template_variables() -> None:
    for adapter in (langchain_stars.ChatStars, llamaindex_stars.StarsLLM, langchain_stars.StarsLLM):
        with pytest.raises(ConfigError, match=r"chat_template_kwargs=\{'enable_thinking': "):
            adapter(enable_thinking=False)


def test_engines_and_adapters_read_variables_alike() -> None:
    config = config_of(chat_template_kwargs={"enable_thinking": False})
    plain = config.replace(chat_template_kwargs={})
    with StarsEngine(config) as engine:
        expected = engine.generate(Chat([turn("Hi")]))[0]
        number = expected.usage.num_prompt_tokens
        assert engine.generate("Hi")[0].text == expected.text
    given: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
    for llm in (langchain_stars.ChatStars(config=config), langchain_stars.ChatStars(config=plain)):
        call = {} if llm.config == config else given
        assert llm.invoke("Hi", **call).usage_metadata["input_tokens"] == number
        assert llm.bind(**given).invoke("Hi").usage_metadata["input_tokens"] == number
    assert langchain_stars.StarsLLM(config=plain, **given).invoke("Hi") == expected.text
    index = llamaindex_stars.StarsLLM(config=plain)
    assert index.complete("Hi", **given).text == expected.text
    asked = [llamaindex_stars.prompts.ChatMessage(role="user", content="Hi")]
    assert index.chat(asked, **given).message.content == expected.message.content
    other = langchain_stars.ChatStars(config=plain).invoke("Hi")
    assert other.usage_metadata["input_tokens"] < number


def test_variables_are_part_of_identities(tmp_path: Any) -> None:
    config = StarsConfig(chat_template_kwargs={"enable_thinking": False})
    plain = StarsConfig()
    assert identity(config) != identity(plain)
    align = config.with_thresholds()
    mine, other = (dependencies(c, align, SamplingParams()) for c in (config, plain))
    assert mine != other
    assert "chat_template_kwargs" not in other  # as in files written before
    config.to_file(tmp_path / "stars.yaml")
    assert StarsConfig.from_file(tmp_path / "stars.yaml") == config
    llm = langchain_stars.ChatStars(chat_template_kwargs={"enable_thinking": False})
    assert json.dumps(llm._identifying_params["chat_template_kwargs"])
    assert llm._get_llm_string() != langchain_stars.ChatStars()._get_llm_string()


def test_rewards_with_a_template_string_have_no_variables() -> None:
    with pytest.raises(ConfigError, match="template"):
        ClassifierReward(
            name_or_path="x", template="{prompt}{completion}", chat_template_kwargs={"a": 1}
        )


# --- strict templates ---

STRICT = [("gemma", tokenizer_of), ("mistral", tokenizer_of), ("gemma", published)]
STRICT += [("gemma3", published)]
FAULTS = {
    "system": [turn("Be kind.", "system"), turn("Hi")],
    "users in a row": [turn("Be kind."), turn("Hi")],
    "all of it": [
        *(turn("Be", "system"), turn("kind.", "system"), turn("Hi"), turn("You?")),
        *(turn("Ho", "assistant"), turn("Hum", "assistant"), turn("Be kind.", "system")),
        *(turn("And?"), turn("Well?")),
    ],
    "system late": [turn("Hi"), turn("Ho", "assistant"), turn("Be kind.", "system"), turn("?")],
    "assistant first": [turn("Welcome!", "assistant"), turn("Hi")],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("name", "make"), STRICT)
def test_strict_templates_get_merged_turns(name: str, make: Any, fault: str) -> None:
    codec = Codec(make(name))
    given = FAULTS[fault]
    text = codec.decode(read_conversation(Chat(given), codec).token_ids)
    positions = [text.find(message.content.strip()) for message in given]
    assert -1 not in positions
    bound = Chat(given, tools=[Tool(name="clock")], tool_choice="none")
    assert codec.decode(read_conversation(bound, codec).token_ids) == text


@pytest.mark.parametrize(("name", "make"), STRICT)
def test_words_of_the_assistant_are_never_the_users(name: str, make: Any) -> None:
    codec = Codec(make(name))
    greeting, hi = turn("Welcome!", "assistant"), turn("Hi")
    cases = {(greeting, hi): [turn(""), greeting, hi]}
    cases[greeting, hi, greeting, hi] = [turn(""), greeting, hi, greeting, hi]
    if name == "gemma":
        given = (turn("Be kind.", "system"), greeting, greeting, hi, hi)
        both = turn("Welcome!\n\nWelcome!", "assistant")
        cases[given] = [turn("Be kind."), both, turn("Hi\n\nHi")]
    for given, rendered in cases.items():
        if name == "mistral":  # it takes an assistant that begins
            rendered = list(given)  # noqa: PLW2901
        expected = codec.tokenizer.apply_chat_template(
            turns_of(rendered), add_generation_prompt=True, return_dict=False
        )
        assert list(read_conversation(Chat(given), codec).token_ids) == expected, given


def test_merged_turns_are_as_documented() -> None:
    codec = Codec(tokenizer_of("gemma"))
    merged = [turn("Be kind.\n\nHi"), turn("Ho", "assistant"), turn("A\n\nB\n\nC")]
    given = [turn("Be kind.", "system"), turn("Hi"), turn("Ho", "assistant")]
    given += [turn("A"), turn("B", "system"), turn("C")]
    expected = codec.tokenizer.apply_chat_template(
        turns_of(merged), add_generation_prompt=True, return_dict=False
    )
    assert list(read_conversation(Chat(given), codec).token_ids) == expected


@pytest.mark.parametrize("make", [tokenizer_of, published])
@pytest.mark.parametrize("after", [[], ["user"], ["user", "system"], ["system", "user"]])
def test_a_late_system_turn_is_merged_if_the_template_has_no_system_role(
    make: Any, after: list[str]
) -> None:
    """Gemma's template refuses only a first system message, and writes the role of a later one."""
    codec = Codec(make("gemma"))
    given = [turn("Hi"), turn("Be kind.", "system"), *(turn("And?", role) for role in after)]
    merged = [turn("\n\n".join(message.content for message in given))]
    expected = codec.tokenizer.apply_chat_template(
        turns_of(merged), add_generation_prompt=True, return_dict=False
    )
    assert list(read_conversation(Chat(given), codec).token_ids) == expected


def test_a_system_turn_is_kept_if_the_template_supports_it() -> None:
    """Only what is rejected is merged: here two users in a row."""
    codec = Codec(published("gemma3"))
    given = [turn("Be kind.", "system"), turn("Hi"), turn("You?")]
    joined = [turn("Be kind.", "system"), turn("Hi\n\nYou?")]
    expected = codec.tokenizer.apply_chat_template(
        turns_of(joined), add_generation_prompt=True, return_dict=False
    )
    assert list(read_conversation(Chat(given), codec).token_ids) == expected


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "gemma"])
def test_conversations_that_a_template_accepts_are_unchanged(name: str) -> None:
    tokenizer = published(name)
    given = [turn("Be kind.", "system"), turn("Hi"), turn("Ho", "assistant"), turn("And?")]
    expected = tokenizer.apply_chat_template(
        turns_of(given), add_generation_prompt=True, return_dict=False
    )
    assert list(read_conversation(Chat(given), Codec(tokenizer)).token_ids) == expected


def test_a_system_turn_that_a_template_drops_is_merged_into_the_user_turn() -> None:
    silent = (
        "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    codec = Codec(tokenizer_of_family(Family(silent, ("</s>",), "</s>")))
    chat = Chat([turn("Be kind.", "system"), turn("Hi")])
    text = codec.decode(read_conversation(chat, codec).token_ids)
    assert text == "[user]Be kind.\n\nHi[assistant]"


def test_a_prefill_is_continued_in_a_strict_template() -> None:
    codec = Codec(tokenizer_of("gemma"))
    turns = [turn("Be kind.", "system"), turn("Hi"), turn("Well, I", "assistant")]
    ids = read_conversation(Chat(turns, continue_final_message=True), codec).token_ids
    assert codec.decode(ids).endswith("model\nWell, I")
    assert "Be kind.\n\nHi" in codec.decode(ids)


def test_merging_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    codec = Codec(tokenizer_of("gemma"))
    for _ in range(3):
        read_conversation(Chat(FAULTS["system"]), codec)
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert "system, user" in caplog.text


def test_calls_and_results_are_never_merged() -> None:
    family = FAMILIES["mistral"]
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    codec = Codec(tokenizer_of_family(Family(strict + family.template, family.control, family.end)))
    call = {"name": "clock", "arguments": {}, "id": "abcdef123"}
    turns = [
        *(turn("Be kind.", "system"), turn("Hi"), turn("", "assistant", tool_calls=[call])),
        turn("7", "tool", tool_call_id="abcdef123"),
    ]
    chat = Chat(turns, tools=[Tool(name="clock")], constrain_tools=False)
    shown = codec.tokenizer.decode(read_conversation(chat, codec).token_ids)
    assert "[INST] Be kind.\n\nHi[/INST]" in shown
    assert "[TOOL_CALLS] [{" in shown
    assert "[TOOL_RESULTS]" in shown


def test_conversations_that_merging_cannot_fix_are_refused() -> None:
    codec = Codec(tokenizer_of_family(Family("{{ raise_exception('no') }}", ("</s>",), "</s>")))
    with pytest.raises(PromptError, match=r"rejects these messages \(no\).*system, user"):
        read_conversation(Chat(FAULTS["system"]), codec)
