"""Secrets are never shown, dumped, logged, raised, traced or pickled, whatever their field."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from langchain_core.load import dumpd, dumps
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from pydantic import SecretStr

from langchain_stars import ChatStars
from langchain_stars import StarsLLM as LangChainLLM
from llamaindex_stars import StarsLLM
from stars_engine import (
    ClassifierReward,
    ConfigError,
    ModelLoadError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TransformersModel,
)
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.calibration.settings import dependencies
from stars_engine.errors import describe_error
from stars_engine.integrations import identity
from stars_engine.loading.models import load_model, load_tokenizer, read_config
from stars_engine.loading.sources import check_exists
from stars_engine.redaction import MASK, is_secret_name, masked, redact, seal, unseal
from stars_engine.runtime.registry import key_of
from tests.support.secrets import (
    CONSTANT,
    KEY,
    KEYWORDS,
    LOCAL,
    MODEL,
    OTHER,
    PASSWORD,
    REWARD,
    TOKEN,
    leaks,
    planted,
)


def test_no_representation_of_a_config_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    config = planted()
    caplog.set_level(logging.DEBUG)
    logging.getLogger("application").warning("%s %r", config, config)
    part = config.reward.parts["a"].reward
    ways: dict[str, object] = {
        "repr": repr(config),
        "str": str(config),
        "format": f"{config}",
        "part": repr(part),
        "kwargs": repr(config.model.model_kwargs),
        "dict": dict(config),
        "dump": config.model_dump(),
        "plain dump": config.model_dump(mode="json"),
        "json": config.model_dump_json(),
        "json of the dump": json.dumps(config.model_dump()),
        "yaml of the dump": yaml.safe_dump(config.model_dump(mode="json")),
        "hash": config.content_hash(),
        "key": key_of(config.model) + key_of(config.reward),
        "identity": identity(config),
        "dependencies": dependencies(config, config.align, SamplingParams()),
        "pickle": pickle.dumps(config),
        "reduce": config.__reduce_ex__(4),
        "state": config.model.__getstate__(),
        "schema": StarsConfig.model_json_schema(),
        "diff": repr(config == planted().replace(prompt_format="raw")),
        "log": caplog.text,
    }
    assert {way: leaks(shown) for way, shown in ways.items() if leaks(shown)} == {}
    assert MASK in ways["repr"]
    assert config.model.token == SecretStr(TOKEN)  # and none is lost
    assert config.reward.parts["b"].reward.token == SecretStr(OTHER)
    assert unseal(config.model.model_kwargs) == KEYWORDS
    assert config.model.replace(dtype="float32").token == SecretStr(TOKEN)
    assert config.model.model_kwargs["attn_implementation"] == "sdpa"
    assert config.model.model_kwargs["headers"]["Accept"] == "text/plain"


def test_configs_with_different_secrets_differ() -> None:
    config = planted()
    others = [
        config.replace(model={**MODEL, "token": OTHER}),
        config.replace(model={**MODEL, "token": None}),
        config.replace(model={**MODEL, "model_kwargs": {**KEYWORDS, "note": f"use {KEY}0"}}),
    ]
    assert len({one.content_hash() for one in (config, *others)}) == 4
    assert len({key_of(one.model) for one in (config, *others)}) == 4
    assert config.content_hash() == planted().content_hash()
    assert config == planted()
    made_for = [dependencies(one, one.align, SamplingParams()) for one in (config, others[0])]
    assert made_for[0] == made_for[1]  # by which right weights are read does not change them


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_no_file_holds_a_secret(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"stars{suffix}"
    with pytest.raises(ConfigError) as caught:
        planted().to_file(path)
    assert not path.exists()
    assert leaks(str(caught.value)) == []
    fields = {problem.field for problem in caught.value.problems}
    assert {"model.token", "model.model_kwargs", "reward.parts.b.reward.token"} <= fields
    assert "HF_TOKEN" in str(caught.value)
    path.write_text(json.dumps({"model": MODEL, "reward": "a/b"}))  # whoever writes one himself
    assert StarsConfig.from_file(path).model.token == SecretStr(TOKEN)


def test_errors_about_broken_files_hide_secrets(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    for text in (
        f"model: {{token: {TOKEN}, model_kwargs: {{password: {PASSWORD}}}\nreward: [",
        f"model:\n  token: '{TOKEN}\n",
        f"model:\n  token: {TOKEN}\n  sizee: x\nreward: {{kind: x, api_key: {KEY}}}\n",
        f"model: [{TOKEN}]\n",
        f"model: {{name_or_path: 'https://user:{PASSWORD}@hub/x'}}\n",
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            StarsConfig.from_file(path)
        assert leaks("".join(traceback.format_exception(caught.value))) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"token": [TOKEN]},
        {"token": {"a": PASSWORD}},
        {"token": f"{PASSWORD} {TOKEN}"},
        {"token": TOKEN, "model_kwargs": {"token": OTHER}},
        {"api_key": KEY},
        {"use_auth_token": PASSWORD},
        {"model_kwargs": {"use_auth_token": PASSWORD}},
        {"model_kwargs": [{"password": PASSWORD}]},
        {"model_kwargs": {"password": PASSWORD, "revision": "x"}},
        {"model_kwargs": {"password": PASSWORD, "bad": "\ud800"}},
        {"name_or_path": f"https://user:{PASSWORD}@hub/x"},
        {"name_or_path": TOKEN},
        {"revision": TOKEN},
        {"tokenizer_name_or_path": f"https://{KEY}@hub/x"},
        {"adapter_path": f"org/{TOKEN}"},
        {"device": TOKEN},
        {"dtype": KEY},
        {"device_map": {"password": PASSWORD, "x": "\ud800"}},
        {"trust_remote_code": TOKEN},
        {"kind": KEY},
    ],
)
def test_no_error_of_a_field_shows_a_secret(fields: dict[str, Any]) -> None:
    for make in (
        lambda: TransformersModel(**{"name_or_path": "a/b", **fields}),
        lambda: StarsConfig(model={"name_or_path": "a/b", **fields}, reward="a/b"),
        lambda: StarsConfig.model_validate_json(
            json.dumps({"model": {"name_or_path": "a/b", **fields}, "reward": "a/b"})
        ),
        lambda: ChatStars(model={"name_or_path": "a/b", **fields}, reward="a/b"),
        lambda: StarsLLM(model={"name_or_path": "a/b", **fields}, reward="a/b"),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        shown = "".join(traceback.format_exception(caught.value))
        assert leaks(shown.replace(repr(fields), "")) == []


def test_a_mask_is_no_secret() -> None:
    config = planted()
    for again in (
        lambda: StarsConfig(**config.model_dump()),
        lambda: StarsConfig.model_validate_json(config.model_dump_json()),
        lambda: TransformersModel(name_or_path="a/b", token=MASK),
        lambda: TransformersModel(name_or_path="a/b", model_kwargs={"proxies": {"https": MASK}}),
    ):
        with pytest.raises(ConfigError, match="is a placeholder for a masked secret"):
            again()
    plain = StarsConfig(model="a/b", reward="a/b")
    assert StarsConfig(**plain.model_dump()) == plain


def test_unpickled_configs_report_missing_secrets(caplog: pytest.LogCaptureFixture) -> None:
    again = pickle.loads(pickle.dumps(planted()))
    assert "The pickle of a TransformersModel does not contain its secrets" in caplog.text
    assert again.model.token is None
    assert "token" not in again.model.model_fields_set
    assert again.model.model_kwargs["attn_implementation"] == "sdpa"
    local = TransformersModel(name_or_path="stars:embedded-lm", model_kwargs={"note": f"x {KEY}"})
    with pytest.raises(
        ModelLoadError, match="a secret is missing, because pickles do not contain secrets"
    ):
        TransformersBackend(pickle.loads(pickle.dumps(local)))
    caplog.clear()
    plain = StarsConfig(model="a/b", reward="a/b")
    assert pickle.loads(pickle.dumps(plain)) == plain
    assert caplog.text == ""


# --- where secrets are used ---


def test_the_token_is_sent_with_every_hub_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []

    def note(name: str) -> Callable[..., object]:
        def ask(*_: object, **keywords: object) -> object:
            asked.append((name, keywords.get("token")))
            if name == "exists":
                return None
            raise OSError(f"401 for {keywords['token']} at https://u:{PASSWORD}@hub, {KEY}")

        return ask

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", note("exists"))
    for auto in ("AutoTokenizer", "AutoConfig", "AutoModelForCausalLM"):
        monkeypatch.setattr(f"transformers.{auto}.from_pretrained", note(auto))
    config = TransformersModel(**MODEL)
    import transformers

    for load in (
        load_tokenizer,
        read_config,
        lambda config: load_model(config, transformers.AutoModelForCausalLM),
    ):
        with pytest.raises(ModelLoadError) as caught:
            load(config)
        assert leaks("".join(traceback.format_exception(caught.value))) == []
        assert MASK in str(caught.value)
    assert {name for name, _ in asked} >= {"exists", "AutoTokenizer", "AutoConfig"}
    assert {token for _, token in asked} == {TOKEN}


def test_secret_keywords_reach_the_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    seen: dict[str, Any] = {}

    def read(*_: object, **keywords: object) -> object:
        seen.update(keywords)
        raise ValueError(f"unexpected keywords {keywords}")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", read)
    config = TransformersModel(name_or_path="stars:embedded-lm", token=TOKEN, model_kwargs=KEYWORDS)
    with pytest.raises(ModelLoadError) as caught:
        load_model(config, transformers.AutoModelForCausalLM)
    assert leaks("".join(traceback.format_exception(caught.value))) == []
    assert {name: seen[name] for name in KEYWORDS} == KEYWORDS
    assert seen["token"] == TOKEN


def test_hub_errors_hide_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(url: str, **_: object) -> None:
        raise ConnectionError(f"{url}: proxy http://user:{PASSWORD}@proxy refused {TOKEN}")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    with pytest.raises(ModelLoadError) as caught:
        check_exists("a/b", "name_or_path", token=PASSWORD)
    assert leaks(str(caught.value)) == []


@pytest.mark.slow
def test_errors_of_user_code_hide_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def reward(prompt: str, completion: str) -> float:
        raise ConnectionError(f"401: key {KEY} at https://user:{PASSWORD}@judge, token='{TOKEN}'")

    for on_failure in ("raise", "reject"):
        config = StarsConfig(
            model="stars:embedded-lm",
            reward={"kind": "function", "function": reward, "on_failure": on_failure},
            align={**CONSTANT, "max_attempts": 2, "on_exhausted": "stop"},
        )
        with StarsEngine(config) as own:
            [outcome] = own.generate(
                ["A"], sampling=SamplingParams(max_tokens=4), return_exceptions=True
            )
        assert leaks(str(outcome)) == []
    assert leaks(caplog.text) == []
    assert leaks(describe_error(ValueError(f"password={PASSWORD}"))) == []


# --- adapters ---

ADAPTERS = [ChatStars, LangChainLLM, StarsLLM]
LOCAL_REWARD = {"kind": "classifier", "name_or_path": "stars:embedded-reward", "token": OTHER}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("way", ["config", "mappings", "objects"])
def test_adapters_hide_secrets(adapter: type, way: str) -> None:
    config = planted()
    made = {
        "config": lambda: adapter(config=config),
        "mappings": lambda: adapter(model=MODEL, reward=REWARD, **CONSTANT),
        "objects": lambda: adapter(model=config.model, reward=config.reward, **CONSTANT),
    }[way]()
    assert made.settings().model.token == SecretStr(TOKEN)
    ways: dict[str, object] = {
        "repr": repr(made),
        "str": str(made),
        "dict": dict(made),
        "dump": made.model_dump(),
        "pickle": pickle.dumps(made),
        "copy": repr(made.model_copy()),
    }
    if adapter is StarsLLM:
        ways |= {"to_dict": made.to_dict(), "to_json": made.to_json(), "payload": made.to_payload()}
    else:
        ways |= {
            "json": json.dumps(made.model_dump(), default=repr),
            "params": made._identifying_params,
            "all params": made.asdict(),
            "dumps": dumps(made),
            "dumpd": dumpd(made),
            "to_json": made.to_json(),
            "llm string": made._get_llm_string() if hasattr(made, "_get_llm_string") else "",
            "invocation": made._get_ls_params(),
            "bound": repr(made.bind(model=MODEL, reward=REWARD)),
        }
    assert {name: leaks(shown) for name, shown in ways.items() if leaks(shown)} == {}


class Everything(BaseTracer):
    """Records everything that LangChain passes to tracers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def _persist_run(self, run: Run) -> None:
        self.seen.append(repr(run.model_dump() if hasattr(run, "model_dump") else vars(run)))

    def on_chat_model_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> Any:
        self.seen.append(repr((args, kwargs)))
        return super().on_chat_model_start(*args, run_id=run_id, **kwargs)

    def on_llm_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> Any:
        self.seen.append(repr((args, kwargs)))
        return super().on_llm_start(*args, run_id=run_id, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [ChatStars, LangChainLLM])
async def test_langchain_traces_hide_secrets(adapter: type) -> None:
    tracer = Everything()
    config: Any = {"callbacks": [tracer]}
    made = adapter(model=LOCAL, reward=LOCAL_REWARD, max_tokens=4, on_overflow="clamp", **CONSTANT)
    given = {"model": LOCAL, "reward": LOCAL_REWARD, "seed": 1}
    made.invoke("The film", config)
    made.invoke("The film", config, **given)
    made.bind(**given).invoke("The film", config)
    made.batch(["The film"], [config], **given)
    list(made.stream("The film", config, **given))
    await made.ainvoke("The film", config, **given)
    assert [chunk async for chunk in made.astream("The film", config, **given)]
    assert len(tracer.seen) >= 14
    assert leaks("".join(tracer.seen)) == []
    with pytest.raises(ConfigError) as caught:
        made.invoke("The film", config, model={**LOCAL, "nme": KEY})
    assert leaks("".join(traceback.format_exception(caught.value)).replace("KEY", "")) == []


class Events(BaseEventHandler):
    """Records everything that LlamaIndex passes to event handlers."""

    seen: list[str] = []  # noqa: RUF012 - a field of pydantic's

    @classmethod
    def class_name(cls) -> str:
        return "Events"

    def handle(self, event: Any, **_: Any) -> None:
        self.seen.append(repr(event.model_dump()))


@pytest.mark.slow
async def test_llamaindex_traces_hide_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events()
    dispatcher = get_dispatcher()
    monkeypatch.setattr(dispatcher, "event_handlers", [events])
    made = StarsLLM(model=LOCAL, reward=LOCAL_REWARD, max_tokens=4, **CONSTANT)
    given = {"model": LOCAL, "reward": LOCAL_REWARD, "seed": 1}
    made.complete("The film", **given)
    list(made.stream_complete("The film", **given))
    await made.acomplete("The film", **given)
    assert [part async for part in await made.astream_complete("The film", **given)]
    assert len(events.seen) >= 8
    assert leaks("".join(events.seen)) == []


# --- what counts as one ---


@pytest.mark.parametrize(
    "name",
    "token hf_token HF_TOKEN apiKey api-key X-Api-Key password DB_PASSWORD Authorization auth "
    "client_secret awsSecretAccessKey cookies access_tokens session key KEY cookie set-cookie "
    "credential credentials bearer Bearer session_id sessionId sessionToken sid ssh_key otp "
    "license_key Ocp-Apim-Subscription-Key oauth passcode http_session AZURE_KEY openaiKey hf_key "
    "db_pass userpass github_pat dsn connection_string ConnectionURL conn_str connStr "
    "CONNECTION_URI connectionstring accesstoken secretkey sasToken sas_url".split(),
)
def test_names_that_mark_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert isinstance(seal({name: "x"})[name], SecretStr)


@pytest.mark.parametrize(
    "name",
    "pad_token eos_token pad_token_id max_tokens num_tokens embed_tokens model.embed_tokens "
    "token_type_ids tokenizer author secretary keys key_id num_key_value_heads sort_key keyword "
    "session_options obsession pinned forward_pass foreign_key path pat compat".split(),
)
def test_names_that_do_not_mark_secrets(name: str) -> None:
    assert not is_secret_name(name)
    assert seal({name: "x"}) == {name: "x"}
    assert seal({name: 8}) == {name: 8}


@pytest.mark.parametrize(
    "name",
    "tokens pat pats api_tokens user_tokens access_key_id accessKeyId KEY_ID aws_access_key_id "
    "keys sig psk pw".split(),
)
def test_names_that_mark_secrets_if_the_value_looks_like_one(name: str) -> None:
    for secret in ("x918273645", "LTAI5tQnKabc", "a1.b2-c3_d4=="):
        for value in (secret, secret.encode(), [secret], {"inner": secret}, ("a", secret)):
            if isinstance(value, dict) and not is_secret_name(name):
                continue  # the inner name decides
            assert secret not in str(masked({name: value})), value
        assert secret not in redact(f"{{'{name}': '{secret}', 'a': 1}}")
    if is_secret_name(name):
        return
    for value in (
        "<|im_end|>",
        "word",
        "two words 1",
        "/data/tokens1.txt",
        "cuda:0",
        128,
        0.5,
        None,
    ):
        assert masked({name: value, "other": [value]}) == {name: value, "other": [value]}
        assert redact(f"{name}={value!r}") == f"{name}={value!r}"


@pytest.mark.parametrize(
    "kwargs",
    [
        {"password": 918273645},
        {"token": 918273645.5},
        {"inner": [{"hf_token": 918273645}]},
        {"auth": {"client_secret": [918273645]}},
        {"token": b"x918273645"},
        {"note": b"password=x918273645"},
        {"credentials": {"a918273645"}},
        {"password": frozenset({b"918273645"})},
    ],
)
def test_secrets_that_are_not_text_are_masked(kwargs: dict[str, Any]) -> None:
    model = TransformersModel(name_or_path="a/b", model_kwargs=kwargs)
    shown = [repr(model), str(model.model_dump()), model.model_dump_json(), str([model])]
    shown += [str(pickle.dumps(model)), StarsConfig(model=model, reward="a/b").content_hash()]
    assert "918273645" not in "".join(shown)
    assert unseal(model.model_kwargs) == kwargs
    assert key_of(model) == key_of(TransformersModel(name_or_path="a/b", model_kwargs=kwargs))
    assert key_of(model) != key_of(model.replace(model_kwargs={next(iter(kwargs)): 1}))
    with pytest.raises(ConfigError, match="model_kwargs"):
        StarsConfig(model=model, reward="a/b").to_file("unused.yaml")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://user:p@ss{PASSWORD}@host/path", f"https://{MASK}@host/path"),
        ("https://huggingface.co/org/model@main/x", None),
        (f"https://cdn/x?X-Amz-Signature={KEY}&a=1", f"https://cdn/x?X-Amz-Signature={MASK}&a=1"),
        (f"http://h:80/v1?token={PASSWORD}&x=1", f"http://h:80/v1?token={MASK}&x=1"),
        (f"https://h/?key={PASSWORD}&sig={PASSWORD}", f"https://h/?key={MASK}&sig={MASK}"),
        (f"mode: x=1;url=h:80/password={PASSWORD}", f"mode: x=1;url=h:80/password={MASK}"),
        (f"header Bearer {PASSWORD}", f"header Bearer {MASK}"),
        ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: Basic {MASK}"),
        (f"token='{PASSWORD}', x", f"token='{MASK}', x"),
        (f'{{"password": "{PASSWORD}"}}', f'{{"password": "{MASK}"}}'),
        (f"key {KEY}.", f"key {MASK}."),
        (
            "{'session': 'a1b2c3d4e5', 'key': 'a1b2c3d4e5'}",
            f"{{'session': '{MASK}', 'key': '{MASK}'}}",
        ),
        ("unknown key: 'city' of session: 'first'; key: value_of_it", None),
        ("hf_transfer and hf_quantizer, sk-learn", None),
        ("unexpected token: something", None),
        ("max_tokens=1000000, eos_token='</s>'", None),
        (f"AZURE_KEY={PASSWORD}; dsn: '{PASSWORD}'", f"AZURE_KEY={MASK}; dsn: '{MASK}'"),
        ("forward_pass=1000000, foreign_key='column'", None),
        ("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----", MASK),
        ("ghp_0123456789abcdefghij and AKIAIOSFODNN7EXAMPLE", f"{MASK} and {MASK}"),
    ],
)
def test_secrets_in_text(text: str, shown: str | None) -> None:
    assert redact(text) == (text if shown is None else shown)


def test_known_secrets_in_text() -> None:
    assert redact("abcdef and abc%2Fdef", ["abcdef", "abc/def"]) == f"{MASK} and {MASK}"
    assert redact("a tale", ["a"]) == "a tale"


def test_a_live_model_rejects_a_token() -> None:
    with pytest.raises(ConfigError, match="token only affect the loading of a checkpoint"):
        ClassifierReward(model=object(), tokenizer=object(), token=TOKEN)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"url": "https://host/x?token=Zq81xkPw"},
        {"headers": {"x-custom": "Bearer Zq81xkPw"}},
        {"extra": "password=Zq81xkPw"},
        {"connection": "Endpoint=https://h/;AccountKey=Zq81xkPw"},
        {"sas": "Zq81xkPw"},
        {"storage": {"tokens": ["Zq81xkPw"], "max_tokens": 8}},
        {"options": [{"pat": "Zq81xkPw"}]},
        {"access_key_id": b"Zq81xkPw"},
        {"note": "url?sv=2024&sig='Zq81xkPw'"},
    ],
)
def test_secrets_within_other_values_are_masked(kwargs: dict[str, Any]) -> None:
    model = TransformersModel(name_or_path="a/b", model_kwargs=kwargs)
    for shown in (repr(model), str(model.model_dump()), model.model_dump_json(), str([model])):
        assert "Zq81xkPw" not in shown
