"""Config objects: every bad value gets one message with field, value, what is allowed, hint."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stars_engine import (
    AlignParams,
    Chat,
    ClassifierReward,
    ConfigError,
    ConstantSchedule,
    FunctionReward,
    LinearSchedule,
    MissingExtraError,
    NoSchedule,
    PerSegmentSchedule,
    SamplingParams,
    StarsConfig,
    TokenIds,
    TransformersModel,
)
from stars_engine.config.flat import with_fields
from stars_engine.config.root import embedded_align, embedded_ramp
from stars_engine.errors import Problem, PromptError, StarsWarning

FIXED = AlignParams(schedule=ConstantSchedule(value=1.0))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: AlignParams(beta=-1), ["beta", "-1", ">= 0", "beta=0.7"]),
        (lambda: AlignParams(beta=math.nan), ["beta", "nan", ">= 0"]),
        (lambda: AlignParams(segment_len=0), ["segment_len", "0", ">= 1", "segment_len=32"]),
        (lambda: AlignParams(segment_end="word"), ["segment_end", "'word'", "'length' or 'sentence'"]),
        (lambda: AlignParams(min_segment_len=4), ["min_segment_len=4", "Hint: set segment_end='sentence'"]),
        (lambda: AlignParams(min_segment_len=0), ["min_segment_len", "0", ">= 1"]),
        (lambda: AlignParams(segment_end="sentence", segment_len=8, min_segment_len=9), ["min_segment_len=9", "segment_len=8", "1 to 8", "Hint"]),
        (lambda: AlignParams(lookahead=-1), ["lookahead", "-1", ">= 0", "lookahead=16"]),
        (lambda: AlignParams(segment_end="sentence", lookahead=4), ["lookahead=4", "segment_end='sentence'", "Hint"]),
        (lambda: AlignParams(max_attempts=0), ["max_attempts", "0", ">= 1"]),
        (lambda: AlignParams(num_candidates=0), ["num_candidates", "0", ">= 1"]),
        (lambda: AlignParams(segment_len="many"), ["segment_len", "'many'", "an integer"]),
        (lambda: AlignParams(on_exhausted="hope"), ["on_exhausted", "'hope'", "'best'", "'stop'"]),
        (lambda: AlignParams(terminal="end"), ["terminal", "'end'", "'target'", "a number"]),
        (lambda: AlignParams(deadline_s=0), ["deadline_s", "0", "None"]),
        (lambda: AlignParams(on_exhausted="fallback"), ["fallback", "fallback_text"]),
        (lambda: AlignParams(fallback_text="no"), ["fallback_text='no'", "on_exhausted='fallback'"]),
        (lambda: AlignParams(segmnet_len=3), ["segmnet_len", "unknown", "did you mean `segment_len`"]),
        (lambda: AlignParams(schedule={"kind": "cubic"}), ["schedule", "'cubic'", "linear, constant"]),
        (lambda: AlignParams(schedule={"value": 1}), ["schedule", "no `kind`", "linear", "per_segment"]),
        (lambda: LinearSchedule(target=1, initial_weight=1.5), ["initial_weight", "1.5", "<= 1"]),
        (lambda: LinearSchedule(target=1, initial_weight=-0.1), ["initial_weight", "-0.1", ">= 0"]),
        (lambda: LinearSchedule(target=1, initial=0, initial_weight=0.5), ["initial=", "one of"]),
        (lambda: LinearSchedule(), ["target", "required", "target=8.0"]),
        (lambda: LinearSchedule(target=math.inf), ["target", "inf"]),
        (lambda: ConstantSchedule(value=math.nan), ["value", "nan"]),
        (lambda: PerSegmentSchedule(values=[]), ["values", "[]", "a list with at least one item; each item: a number"]),
        (lambda: Chat([]), ["messages", "[]", "a list with at least one item"]),
        (lambda: SamplingParams(temperature=-1), ["temperature", "-1", ">= 0"]),
        (lambda: SamplingParams(top_p=0), ["top_p", "0", "> 0 and <= 1"]),
        (lambda: SamplingParams(top_k=0), ["top_k", "0", "None"]),
        (lambda: SamplingParams(n=0), ["n", "0", ">= 1"]),
        (lambda: SamplingParams(seed=-1), ["seed", "-1"]),
        (lambda: SamplingParams(stop=["a", ""]), ["stop", "empty"]),
        (lambda: SamplingParams(logit_bias={3: math.nan}), ["logit_bias", "nan", "-inf"]),
        (lambda: SamplingParams(min_tokens=9, max_tokens=3), ["min_tokens=9", "max_tokens=3"]),
        (lambda: TransformersModel(), ["name_or_path", "model"]),
        (lambda: TransformersModel(name_or_path=""), ["name_or_path", "text that is not empty"]),
        (lambda: TransformersModel(model=object()), ["tokenizer"]),
        (lambda: TransformersModel(name_or_path="a", device="gpu"), ["device", "'gpu'", "'cpu'", "'mps'", "'cuda:0'"]),
        (lambda: TransformersModel(name_or_path="a", device="cpu\n"), ["device", "'cpu\\n'", "'cpu'"]),
        (lambda: SamplingParams(logit_bias={"a": 1}), ["logit_bias", "'a'", "a mapping from an integer", "token ids"]),
        (lambda: TransformersModel(name_or_path="a", dtype="int3"), ["dtype", "'int3'", "'bfloat16'"]),
        (lambda: TransformersModel(name_or_path="a", device="cpu", device_map="auto"), ["device_map"]),
        (
            lambda: TransformersModel(name_or_path="a", model_kwargs={"use_safetensors": False}),
            ["model_kwargs", "use_safetensors", "safetensors"],
        ),
        (
            lambda: TransformersModel(name_or_path="a", model_kwargs={"config": {"vocab_size": 5}}),
            ["model_kwargs", "'config' is of type dict", "a config object of transformers", "Hint:"],
        ),
        (
            lambda: TransformersModel(name_or_path="a", model_kwargs={"config": "org/model"}),
            ["model_kwargs", "'config' is of type str", "AutoConfig.from_pretrained(...)"],
        ),
        (lambda: TransformersModel(model=1, tokenizer=1, dtype="float16"), ["dtype", "in memory"]),
        (lambda: FunctionReward(function="polite"), ["function", "'polite'", "package.module:name"]),
        (lambda: ClassifierReward(name_or_path="a", batch_size=0), ["batch_size", "0", ">= 1"]),
        (lambda: StarsConfig(model="a/b"), ["reward is required"]),
        (lambda: StarsConfig(align={"beta": -1}), ["align.beta", "-1", ">= 0"]),
        (
            lambda: StarsConfig(align={"schedule": {"kind": "linear", "target": 1, "initial_weight": 2}}),
            ["align.schedule.initial_weight", "2", "<= 1"],
        ),
        (lambda: StarsConfig(reward={"kind": "oracle"}), ["reward", "'oracle'", "classifier, process, yes_no, value, guard, guardrail, function, server, server_yes_no, server_process, vllm, composite"]),
        (lambda: ClassifierReward(name_or_path="a", floor=math.nan), ["floor", "nan", "number or None"]),
        (lambda: FunctionReward(function=len, floor=math.nan), ["floor", "nan", "number or None"]),
        (lambda: TransformersModel(name_or_path="a", tokenizer=1), ["tokenizer", "no effect", "model="]),
        (lambda: SamplingParams(max_tokens=True), ["max_tokens", "True", "an integer >= 1"]),
        (lambda: SamplingParams(seed=False), ["seed", "False", "None"]),
        (lambda: SamplingParams(temperature=True), ["temperature", "True", "a number >= 0"]),
        (lambda: AlignParams(beta=True), ["beta", "True", "a number"]),
        (lambda: AlignParams(terminal=False), ["terminal", "False", "'target'"]),
        (lambda: AlignParams(deadline_s=True), ["deadline_s", "True"]),
        (lambda: ClassifierReward(name_or_path="a", label=True), ["label", "True", "an integer"]),
        (lambda: SamplingParams(stop_token_ids=7), ["stop_token_ids", "7", "a list; each item: an integer"]),
        (lambda: PerSegmentSchedule(values=1.0), ["values", "1.0", "item; each item: a number"]),
        (lambda: TokenIds([1, 2**31]), ["ids", "2147483648", "vocabulary"]),
        (lambda: StarsConfig(prompt_format="xml"), ["prompt_format", "'xml'", "'chat'"]),
        (lambda: Chat([{"role": "boss", "content": "hi"}]), ["messages", "role", "'boss'", "'user'"]),
    ],
)  # fmt: skip
def test_every_bad_value_gives_one_clear_message(
    build: Callable[[], object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    message = str(caught.value)
    assert len(caught.value.problems) == 1
    assert "\n" not in message
    assert "pydantic" not in message
    for word in words:
        assert word in message


def test_several_problems_are_listed_together() -> None:
    with pytest.raises(ConfigError) as caught:
        StarsConfig(align={"beta": -1, "segment_len": 0}, sampling={"n": 0})
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["align.beta", "align.segment_len", "sampling.n"]


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_configs_survive_files(tmp_path: Path, suffix: str) -> None:
    config = StarsConfig(
        model=TransformersModel(name_or_path="a/b", dtype="bfloat16", model_kwargs={"x": [1]}),
        reward=FunctionReward(function="math:sin", floor=-math.inf),
        align=AlignParams(
            schedule=PerSegmentSchedule(values=[-math.inf, 1.5, math.inf]),
            beta=math.inf,
            terminal=-math.inf,
        ),
        sampling=SamplingParams(stop=["\n\n", "🙂"], logit_bias={3: -math.inf}, seed=2**62),
        prompt_format="raw",
    )
    path = tmp_path / f"stars{suffix}"
    config.to_file(path)
    assert StarsConfig.from_file(path) == config
    assert StarsConfig.from_file(path).align.schedule.values[0] == -math.inf
    assert "schema_version" in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@given(stop=st.lists(st.text(min_size=1), max_size=3))
@example(stop=["\x85", "a\u2028b", "\u2029", "\ufeff", "\ufffe", "\x00", "\x7f", "\r\n", "\t", " "])
@example(stop=["yes", "1e5", "null", "~", "'", '"', "a: b", "# c", "🙂", "\n\n", "é" * 100])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)  # disks wait
def test_every_text_survives_a_file(tmp_path: Path, suffix: str, stop: list[str]) -> None:
    config = StarsConfig(sampling=SamplingParams(stop=stop))
    path = tmp_path / f"stars{suffix}"
    config.to_file(path)
    assert StarsConfig.from_file(path) == config


def test_visible_text_is_written_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    StarsConfig(sampling=SamplingParams(stop=["Ünïcode 🙂"])).to_file(path)
    assert "- Ünïcode 🙂\n" in path.read_text(encoding="utf-8")


def test_the_default_config_survives_a_file(tmp_path: Path) -> None:
    StarsConfig().to_file(tmp_path / "stars.yaml")
    assert StarsConfig.from_file(tmp_path / "stars.yaml") == StarsConfig()


# Nine lines that stand for 9 ** 9 values.
ALIASES = (
    "a0: &a0 ["
    + "x," * 9
    + "]\n"
    + "\n".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 9))
)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_encodings_of_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"stars{suffix}"
    text = json.dumps({"model": "a/b", "reward": "a/é"}, ensure_ascii=False)
    path.write_text(text, encoding="utf-8-sig")  # some editors begin a file with a mark
    assert StarsConfig.from_file(path).reward.name_or_path == "a/é"
    for encoding, byte in (("utf-16", 0), ("latin-1", text.index("é"))):
        path.write_text(text, encoding=encoding)
        with pytest.raises(ConfigError, match=f"byte {byte} is not UTF-8. Hint: save the file as"):
            StarsConfig.from_file(path)


def test_aliases_and_merged_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    path.write_text(
        "model: {name_or_path: a/m, dtype: &d float32}\n"
        "reward: &r {kind: classifier, name_or_path: a/b, dtype: *d}\n"
    )
    config = StarsConfig.from_file(path)
    assert config.reward.dtype == "float32"  # type: ignore[union-attr]
    path.write_text(
        "model: &m {name_or_path: a/m, dtype: float32}\n"
        "reward: {<<: *m, kind: classifier, name_or_path: a/b}\n"
    )
    assert StarsConfig.from_file(path) == config


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.yaml", None, ["cannot be read: No such file or directory. Hint: check the path"]),
        ("a.toml", "x = 1", [".toml", ".yaml"]),
        ("list.yaml", "- 1", ["list"]),
        ("broken.yaml", "a: [", ["not valid yaml"]),
        ("broken.json", "{", ["not valid json"]),
        ("typo.yaml", "algin: {}", ["algin", "did you mean `align`"]),
        ("number.yaml", "1: 2", ["the key 1 is not a string", "quotes"]),
        ("deep.yaml", "align: {schedule: {null: 2}}", ["None under align.schedule", "quotes"]),
        ("inlist.yaml", "reward: [{yes: 2}]", ["True under reward.0"]),
        ("recursive.yaml", "align: &a {schedule: *a}", ["within itself"]),
        ("nested.json", "[" * 200_000, ["nested too deeply"]),
        ("date.yaml", "a: 2001-99-99", ["not valid yaml"]),
        ("twice.yaml", "reward: a/b\nreward: a/c", ["'reward' occurs twice", "line 2"]),
        ("twice.json", '{"reward": "a/b", "reward": "a/c"}', ["'reward' occurs twice"]),
        ("inner.yaml", "align: {lookahead: 1, 'lookahead': 2}", ["'lookahead' occurs twice"]),
        ("inner.json", '{"align": [{"a": 1, "a": 2}]}', ["'a' occurs twice"]),
        ("aliases.yaml", ALIASES, ["not valid yaml", "1,000,000 values"]),
        ("merged.yaml", f"{ALIASES}\nz: {{<<: *a8}}", ["1,000,000 values"]),
        ("future.yaml", "schema_version: 9", ["schema_version", "9", "1"]),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, name: str, text: str | None, words: list[str]
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        StarsConfig.from_file(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_live_objects_cannot_be_saved(tmp_path: Path) -> None:
    config = StarsConfig(
        model=TransformersModel(model=object(), tokenizer=object()),
        reward=lambda prompt, completion: 1.0,
        align=FIXED,
    )
    with pytest.raises(
        ConfigError, match=r"(?s)model.*live object.*reward.*package.module:name"
    ) as e:
        config.to_file(tmp_path / "stars.yaml")
    assert [problem.field for problem in e.value.problems] == ["model", "reward"]
    assert not (tmp_path / "stars.yaml").exists()


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize(
    "kwargs", [{"a": object()}, {"a": [{"b": (1, 2)}]}, {"a": math.inf}, {"a": {0: "10GB"}}]
)
def test_objects_in_model_kwargs_cannot_be_saved(
    tmp_path: Path, suffix: str, kwargs: dict[str, object]
) -> None:
    part = {"name_or_path": "a/b", "model_kwargs": kwargs}
    config = StarsConfig(
        model=TransformersModel(**part), reward=ClassifierReward(**part), align=FIXED
    )
    path = tmp_path / f"stars{suffix}"
    with pytest.raises(ConfigError, match="which no file gives back") as caught:
        config.to_file(path)
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["model.model_kwargs", "reward.model_kwargs"]
    assert not path.exists()


def test_json_files_are_json(tmp_path: Path) -> None:
    align = AlignParams(schedule=ConstantSchedule(value=-math.inf), beta=math.inf)
    config = StarsConfig(
        model="a/b", reward="c/d", align=align, sampling={"logit_bias": {3: -math.inf}}
    )
    config.to_file(tmp_path / "stars.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "stars.json").read_text(), parse_constant=refuse)
    assert StarsConfig.from_file(tmp_path / "stars.json") == config


def test_token_ids_are_keys(tmp_path: Path) -> None:
    (tmp_path / "stars.yaml").write_text("sampling: {logit_bias: {13: -5.0}}")
    assert StarsConfig.from_file(tmp_path / "stars.yaml").sampling.logit_bias == {13: -5.0}


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("nowhere/stars.yaml", "its directory does not exist. Hint: create the directory"),
        ("folder.yaml", "Is a directory. Hint: give a file in that directory"),
        ("file.txt/stars.json", "Not a directory. Hint: a part of the path is a file"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path: Path, name: str, fix: str) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(ConfigError, match=re.escape(f"cannot be written: {fix}")):
        StarsConfig().to_file(tmp_path / name)


def test_the_hint_suits_the_live_object(tmp_path: Path) -> None:
    live = ClassifierReward(model=object(), tokenizer=object())
    with pytest.raises(ConfigError, match=r"reward.*give name_or_path$"):
        StarsConfig(model="a/b", reward=live, align=FIXED).to_file(tmp_path / "stars.yaml")


def test_configs_are_frozen_replaceable_and_hashable() -> None:
    params = AlignParams(schedule=NoSchedule())
    with pytest.raises(ConfigError, match=r"beta.*frozen.*\.replace\(beta=\.\.\.\)"):
        params.beta = 1.0
    assert params.replace(beta=0.5).beta == 0.5
    with pytest.raises(ConfigError):
        params.replace(beta=-1)
    assert params.content_hash() == AlignParams(schedule=NoSchedule()).content_hash()
    assert params.content_hash() != params.replace(segment_len=8).content_hash()


@pytest.mark.parametrize(
    ("build", "hint"),
    [
        (lambda: LinearSchedule(8.0), "LinearSchedule(target=8.0)"),
        (lambda: ConstantSchedule(1), "ConstantSchedule(value=1)"),
        (lambda: TransformersModel("a/b"), "TransformersModel(name_or_path='a/b')"),
    ],
)
def test_fields_are_keyword_only(build: Callable[[], object], hint: str) -> None:
    with pytest.raises(TypeError) as caught:
        build()
    assert hint in str(caught.value)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_can_be_pickled(again: Callable[[Exception], Exception]) -> None:
    """To other processes, and through the copies that task queues make."""
    with pytest.raises(ConfigError) as caught:
        SamplingParams(max_tokens=0, n=0)
    caught.value.add_note("noted")
    for error in (caught.value, MissingExtraError("torch", "local")):
        copied = again(error)
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        assert vars(copied) == vars(error)
    assert copied.name == "torch"


def test_names_and_callables_are_accepted_as_configs() -> None:
    config = StarsConfig(model="a/b", reward="c/d", align=FIXED)
    assert config.model == TransformersModel(name_or_path="a/b")
    assert config.reward == ClassifierReward(name_or_path="c/d")
    assert StarsConfig(model="a/b", reward=len, align=FIXED).reward.kind == "function"
    named = StarsConfig(model="a/b", reward="my_package.rewards:polite", align=FIXED)
    assert named.reward == FunctionReward(function="my_package.rewards:polite")
    assert StarsConfig(reward="stars:embedded-reward").reward.kind == "classifier"
    assert SamplingParams(stop="\n").stop == ("\n",)


def test_json_schema_documents_every_field() -> None:
    schema = json.loads(json.dumps(StarsConfig.model_json_schema()))
    assert set(schema["properties"]) == set(StarsConfig.model_fields)
    for name, model in schema["$defs"].items():
        for field, about in model.get("properties", {}).items():
            assert field == "kind" or "description" in about, f"{name}.{field}"


def test_other_segment_lengths_keep_the_embedded_ramp() -> None:
    """Thresholds that were measured for segments of one length mean nothing to another."""
    config, own, ramp = StarsConfig(), embedded_align(), embedded_ramp()
    assert config.with_thresholds() == own
    for align in (AlignParams(segment_len=7), own.replace(segment_len=7)):
        other = config.with_thresholds(align)
        assert (other.schedule, other.segment_len) == (ramp, 7)
    assert config.with_thresholds(AlignParams(beta=0.5)).schedule == ramp
    assert config.with_thresholds(AlignParams(lookahead=4)).schedule == ramp
    for align in (AlignParams(max_attempts=3), AlignParams(segment_len=own.segment_len)):
        found = config.with_thresholds(align)
        assert (found.schedule, found.segment_len) == (own.schedule, own.segment_len)
    given = AlignParams(schedule=ConstantSchedule(value=1.0), segment_len=7)
    assert config.with_thresholds(given) == given


def test_one_changed_field_keeps_the_other_embedded_settings() -> None:
    own = StarsConfig().align
    changed = with_fields(StarsConfig(), {"max_attempts": 5}, owner="StarsLLM").align
    assert changed == own.replace(max_attempts=5)
    assert changed.segment_len == own.segment_len != AlignParams().segment_len


def test_the_hint_of_an_error_is_an_attribute() -> None:
    problems = [Problem("a", "is 1. Hint: give 2"), Problem("b", "is 3"), Problem("c", "Hint: 4")]
    assert ConfigError("X", problems).hint == "give 2\n4"
    assert ConfigError("X", problems[1:2]).hint == ""
    error = PromptError("the prompt is empty. Hint: give one token at least")
    assert error.hint == pickle.loads(pickle.dumps(error)).hint == "give one token at least"
    assert "pip install -e '.[local]'" in MissingExtraError("torch", "local").hint
    assert StarsWarning("slow. Hint: be quick").hint == "be quick"


def test_text_that_no_file_can_encode_is_refused() -> None:
    for build in (
        lambda: TransformersModel(name_or_path="a/b", model_kwargs={"a": {"\ud800"}}),
        lambda: TransformersModel(name_or_path="a/b", model_kwargs={"a": [frozenset({"\ud800"})]}),
        lambda: SamplingParams(stop=["\ud800"]),
        lambda: AlignParams(on_exhausted="fallback", fallback_text="a\udc80"),
    ):
        with pytest.raises(ConfigError, match="surrogate"):
            build()


def test_a_path_in_a_message_has_no_control_characters() -> None:
    with pytest.raises(ConfigError) as caught:
        StarsConfig.from_file("\x1b]0;owned\x07.yaml")
    assert str(caught.value).isprintable()
    assert "owned" in str(caught.value)


def test_advice_in_messages_is_marked_as_a_hint() -> None:
    """No message of ours gives advice under another word than `Hint:`."""
    for package in ("stars_engine", "langchain_stars", "llamaindex_stars"):
        for path in (Path(__file__).parents[2] / package).rglob("*.py"):
            assert not re.search(r"\b(Cure|Fix|Advice|Remedy): ", path.read_text("utf-8")), path
