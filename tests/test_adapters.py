"""What both adapters promise alike: fields, settings per call, usage, streams, one engine."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField
from llama_index.core.llms import ChatMessage

import langchain_stars
import llamaindex_stars
from stars_engine import (
    AlignParams,
    Chat,
    ConfigError,
    ConstantSchedule,
    EngineParams,
    NoSchedule,
    PromptError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.adapting import MAX_ENGINES, UNSET, EngineFields
from stars_engine.config.flat import FLAT_FIELDS
from tests.conftest import shared_model

ROOT = Path(__file__).parents[1]
SETTINGS = {"max_tokens": 40, "seed": 7}
PROMPT = "The acting in this movie"


@pytest.fixture(scope="module", autouse=True)
def _one_runtime() -> Iterator[None]:
    with StarsEngine.shared() as keeper:  # loaded once for all tests here
        yield
        assert keeper.stats().num_loads == 1


@pytest.fixture(params=[langchain_stars.StarsLLM, llamaindex_stars.StarsLLM])
def adapter(request: pytest.FixtureRequest) -> Any:
    return request.param


def ask(llm: Any, prompt: str = PROMPT, **settings: Any) -> str:
    """One answer, from either framework."""
    if isinstance(llm, langchain_stars.StarsLLM):
        return llm.invoke(prompt, **settings)
    return llm.complete(prompt, **settings).text


@pytest.fixture(scope="module")
def expected(engine: StarsEngine) -> str:
    return engine.generate(PROMPT, sampling=SamplingParams(**SETTINGS))[0].text


# --- fields ---


def test_every_setting_is_a_field() -> None:
    assert EngineFields.model_fields.keys() == FLAT_FIELDS | {"config"}


def test_equal_settings_give_equal_text_everywhere(
    adapter: Callable[..., Any], expected: str, tmp_path: Path
) -> None:
    config = StarsConfig(sampling=SamplingParams(**SETTINGS))
    config.to_file(tmp_path / "stars.yaml")
    assert ask(adapter(**SETTINGS)) == expected
    assert ask(adapter(config=config)) == expected
    assert ask(adapter.from_file(tmp_path / "stars.yaml")) == expected
    assert ask(adapter(config=config, seed=8)) != expected
    assert ask(adapter(config=config, seed=8), seed=7) == expected
    assert ask(adapter(), **SETTINGS) == expected


def test_none_is_a_value(adapter: Callable[..., Any]) -> None:
    assert adapter(top_k=None).settings().sampling.top_k is None
    assert adapter(top_k=UNSET).settings().sampling.top_k == SamplingParams().top_k
    assert adapter().settings() == StarsConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temprature": 0.5}, "did you mean `temperature`"),
        ({"max_tokens": 0}, "max_tokens: 0 is not allowed"),
        ({"model": "a/model"}, "reward is required"),
        ({"config": {"align": {"beta": -1}}}, "beta"),
    ],
)
def test_bad_values_are_told_at_once(
    adapter: Callable[..., Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter(**values)


def test_unknown_and_bad_keywords_of_a_call_raise(adapter: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="did you mean `segment_len`"):
        ask(adapter(), segment_length=4)
    with pytest.raises(ConfigError, match="beta"):
        ask(adapter(), beta=-1)


def test_other_models_need_their_own_thresholds(adapter: Callable[..., Any]) -> None:
    llm = adapter(
        model="stars:embedded-lm",
        reward=lambda prompt, completion: float(len(completion)),
        schedule={"kind": "constant", "value": 1.0},
        **SETTINGS,
    )
    assert ask(llm)
    llm.close()


def test_copies_share_the_engine(adapter: Callable[..., Any], expected: str) -> None:
    llm = adapter(**SETTINGS)
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


# --- LangChain ---


def test_a_batch_is_one_call_of_the_engine(engine: StarsEngine) -> None:
    llm = langchain_stars.StarsLLM(**SETTINGS)
    prompts = [f"Film number {index}" for index in range(16)]
    alone = [llm.invoke(prompt) for prompt in prompts]
    before = llm.engine().stats().num_rounds
    assert llm.batch(prompts) == alone
    one_batch = llm.engine().stats().num_rounds - before
    longest = max(
        -(-result.usage.num_attempts // 4) + len(result.segments)
        for result in engine.generate(prompts, sampling=SamplingParams(**SETTINGS))
    )
    assert one_batch <= longest


def test_langchain_gives_usage_and_trace() -> None:
    llm = langchain_stars.StarsLLM(**SETTINGS, n=2)
    result = llm.generate([PROMPT, "Another"])
    assert [len(generations) for generations in result.generations] == [2, 2]
    for generations in result.generations:
        for generation in generations:
            info = generation.generation_info
            assert info["usage"]["completion_tokens"] > 0
            assert info["finish_reason"] in ("stop", "length")
            assert "".join(segment["text"] for segment in info["segments"]) == generation.text
    assert result.llm_output["token_usage"]["completion_tokens"] == sum(
        g.generation_info["usage"]["completion_tokens"] for gs in result.generations for g in gs
    )


def test_langchain_streams_accepted_segments(expected: str) -> None:
    class Notes(BaseCallbackHandler):
        def __init__(self) -> None:
            self.tokens: list[str] = []
            self.info: dict[str, Any] = {}

        def on_llm_new_token(self, token: str, **_: Any) -> None:
            self.tokens.append(token)

        def on_llm_end(self, response: Any, **_: Any) -> None:
            self.info = response.generations[0][0].generation_info

    notes = Notes()
    llm = langchain_stars.StarsLLM(**SETTINGS)
    chunks = list(llm.stream(PROMPT, config={"callbacks": [notes]}))
    assert "".join(chunks) == expected == "".join(notes.tokens)
    assert len(chunks) > 1
    assert notes.info["usage"]["completion_tokens"] == 40
    with pytest.raises(ConfigError, match="n=1"):
        list(llm.stream(PROMPT, n=2))


async def test_langchain_async(expected: str) -> None:
    llm = langchain_stars.StarsLLM(**SETTINGS)
    assert await llm.ainvoke(PROMPT) == expected
    assert await llm.abatch([PROMPT] * 2) == [expected] * 2
    assert "".join([chunk async for chunk in llm.astream(PROMPT)]) == expected


def test_langchain_stop_bind_and_configurable_fields(expected: str) -> None:
    llm = langchain_stars.StarsLLM(max_tokens=40)
    [stopped] = StarsEngine.shared().generate(
        PROMPT, sampling=SamplingParams(**SETTINGS, stop=["film"])
    )
    assert llm.invoke(PROMPT, stop=["film"], seed=7) == stopped.text != expected
    assert llm.bind(seed=7).invoke(PROMPT) == expected
    configurable = llm.configurable_fields(seed=ConfigurableField(id="seed"))
    assert configurable.with_config(configurable={"seed": 7}).invoke(PROMPT) == expected
    chain = PromptTemplate.from_template("{who} in this movie") | llm.bind(seed=7)
    assert chain.invoke({"who": "The acting"}) == expected


def test_langchain_identity_counts_tokens_and_tells_settings_apart() -> None:
    llm = langchain_stars.StarsLLM(seed=1)
    other = langchain_stars.StarsLLM(seed=1, beta=0.1)
    assert llm._identifying_params != other._identifying_params
    assert llm.asdict()["schedule"]["kind"] == "linear"
    assert llm.get_num_tokens("The acting") == 2
    assert llm._get_ls_params(stop=["x"])["ls_stop"] == ["x"]


# --- LlamaIndex ---


def test_llamaindex_metadata_is_the_models_own() -> None:
    metadata = llamaindex_stars.StarsLLM(**SETTINGS).metadata
    assert (metadata.context_window, metadata.num_output) == (512, 40)
    assert not metadata.is_chat_model
    assert metadata.model_name == "stars:embedded-lm"


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A model with a template, a context and a generation config of its own."""
    model = StarsEngine().model
    model.codec.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model.codec.tokenizer.save_pretrained(tmp_path)
    model.model.config.max_position_embeddings = 300
    model.model.generation_config.update(max_new_tokens=24, do_sample=True, temperature=0.5)
    model.model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", ["embedded", "directory", "template", "overridden", "live"])
async def test_llamaindex_metadata_loads_no_weights(case: str, described: Path) -> None:
    """Frameworks read it in event loops; it is what the loaded model says."""
    model: dict[str, Any] = {"name_or_path": str(described)}
    if case == "embedded":
        model = {"name_or_path": "stars:embedded-lm", "dtype": "float32"}  # not what others share
    if case == "template":
        model = {"name_or_path": "stars:embedded-lm", "chat_template": "{{ messages[0].content }}"}
    if case == "overridden":
        model["model_kwargs"] = {"max_position_embeddings": 200}
    if case == "live":
        loaded = StarsEngine().model
        model = {"model": loaded.model, "tokenizer": loaded.codec.tokenizer}
    config = StarsConfig(model=model, reward=lambda prompt, text: 1.0, sampling="model")
    llm = llamaindex_stars.StarsLLM(config=config)
    cold = llm.metadata
    assert llm.engine().is_loaded == (case == "overridden")  # only the loaded model knows
    await llm.aload()
    assert llm.metadata == cold
    expected = {"directory": (300, 24, True), "overridden": (200, 24, True)}
    ours = (512, SamplingParams().max_tokens, case == "template")
    found = (cold.context_window, cold.num_output, cold.is_chat_model)
    assert found == expected.get(case, ours)
    llm.close()


def test_llamaindex_usage_streams_and_async(expected: str) -> None:
    llm = llamaindex_stars.StarsLLM(**SETTINGS)
    response = llm.complete(PROMPT)
    assert response.text == expected
    assert response.additional_kwargs["completion_tokens"] == 40
    assert "".join(segment["text"] for segment in response.raw["segments"]) == expected
    parts = list(llm.stream_complete(PROMPT))
    assert "".join(part.delta for part in parts) == expected == parts[-1].text
    assert parts[-1].raw["finish_reason"] == "length"


async def test_llamaindex_async(expected: str) -> None:
    llm = llamaindex_stars.StarsLLM(**SETTINGS)
    assert (await llm.acomplete(PROMPT)).text == expected
    parts = [part async for part in await llm.astream_complete(PROMPT)]
    assert parts[-1].text == expected
    messages = [ChatMessage(PROMPT)]
    chat = await llm.achat(messages)
    chats = [part async for part in await llm.astream_chat(messages)]
    assert chats[-1].message.content == chat.message.content == llm.chat(messages).message.content


def test_llamaindex_chats_by_the_models_template() -> None:
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    config = StarsConfig(
        model={"name_or_path": shared_model("TinyStories-656K"), "chat_template": template},
        reward=lambda prompt, completion: 1.0,
        align=AlignParams(schedule=NoSchedule()),
        sampling=SamplingParams(max_tokens=12, seed=1),
    )
    llm = llamaindex_stars.StarsLLM(config=config)
    assert llm.metadata.is_chat_model
    messages = [ChatMessage("Be brief.", role="system"), ChatMessage("Hello", role="user")]
    chat = Chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    [by_engine] = StarsEngine.shared(config).generate(chat)
    assert llm.chat(messages).message.content == by_engine.text
    assert "".join(r.delta for r in llm.stream_chat(messages)) == by_engine.text
    one_turn = llm.chat([ChatMessage("Hello")]).message.content
    assert llm.complete("Hello").text == one_turn  # a string is a user turn here
    image = ChatMessage(role="user", blocks=[{"block_type": "image", "image": b"x"}])
    with pytest.raises(PromptError, match="ImageBlock"):
        llm.chat([image])
    llm.close()


def test_llamaindex_uses_the_users_own_templates(expected: str) -> None:
    llm = llamaindex_stars.StarsLLM(
        **SETTINGS,
        completion_to_prompt=lambda text: f"<|startoftext|>{text} in this movie",
        messages_to_prompt=lambda messages: "<|startoftext|>" + messages[0].content,
    )
    assert llm.complete("The acting").text == expected
    assert llm.chat([ChatMessage(PROMPT)]).message.content == expected


# --- the package ---


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
    assert f"pip install 'stars-engine[{extra}]'" in done.stderr


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "reward:" in done.stdout


def test_bounds_of_the_shared_engine_are_fields_too(adapter: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="max_rows"):
        ask(adapter(max_rows=3, **SETTINGS))
    assert adapter(on_full="raise").settings().engine == EngineParams(on_full="raise")


# --- engines of copies and of calls ---


def test_a_copy_has_engines_of_its_own(adapter: Callable[..., Any]) -> None:
    llm = adapter(**SETTINGS)
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


def test_a_call_with_models_of_its_own_leaves_the_objects_engine(
    adapter: Callable[..., Any],
) -> None:
    llm = adapter(**SETTINGS)
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
