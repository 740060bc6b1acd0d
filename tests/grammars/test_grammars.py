"""Grammars: masks against brute force, the exact law, and valid answers."""

from __future__ import annotations

import random
import re
import sys
from functools import cache
from itertools import product
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from stars_engine import (
    AlignParams,
    ChoiceGrammar,
    ConfigError,
    ConstantSchedule,
    EbnfGrammar,
    GenerationError,
    JsonGrammar,
    MissingExtraError,
    NoSchedule,
    RegexGrammar,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TransformersModel,
)
from stars_engine.algorithm.rollout import Rollout
from stars_engine.config import Grammar
from stars_engine.core.offline import stars
from stars_engine.grammars import Grammars
from stars_engine.testing import TableReward, TabularModel, enumerate_law
from stars_engine.testing.enumerator import TreeNoise
from stars_engine.tokenization.codec import Codec
from stars_engine.types import StarsResult
from tests.support.backends import random_backend
from tests.support.byte_tokenizers import BYTE_TOKENIZERS
from tests.support.grammars import check, held
from tests.support.random_schemas import random_document, random_leaf, random_schema
from tests.support.rollouts import make_rollout

PIECES = ("a", "b", "ab", "ba", "", "c")
END = 4

# Each with the strings of its language, as far as seven letters go.
LANGUAGES: list[tuple[Grammar, str]] = [
    (RegexGrammar(pattern="a(b|ab)*"), r"a(b|ab)*"),
    (RegexGrammar(pattern="(ab|ba){1,2}|c?"), r"(ab|ba){1,2}|c?"),
    (ChoiceGrammar(choices=("ab", "abba", "b")), r"ab|abba|b"),
    (EbnfGrammar(text='start: "a" start "b" | "c"'), r"c|acb|aacbb|aaacbbb"),
    (EbnfGrammar(text='root ::= "ab"* "c"'), r"(ab)*c"),
]
STRINGS = ["".join(letters) for size in range(8) for letters in product("abc", repeat=size)]


@cache
def language(pattern: str) -> list[str]:
    return [text for text in STRINGS if re.fullmatch(pattern, text)]


def viable(pattern: str, text: str) -> bool:
    """Whether a text begins one of the language's; of those with seven letters at most."""
    return any(whole.startswith(text) for whole in language(pattern))


@pytest.mark.parametrize(("grammar", "pattern"), LANGUAGES)
def test_masks_equal_brute_force(grammar: Grammar, pattern: str) -> None:
    """After every beginning of three letters at most, in every spelling of it as tokens."""
    grammars = Grammars([piece.encode() for piece in PIECES], [END], [END])
    spellings = [((), "")]
    num_checked = 0
    for ids, text in spellings:
        state = grammars.start(grammar)
        state.consume(ids)
        [mask] = grammars.allowed([state])
        expected = [
            re.fullmatch(pattern, text) is not None if token == END else viable(pattern, text + p)
            for token, p in enumerate(PIECES)
        ]
        if len(text) <= 2:
            assert mask.tolist() == expected, text
            num_checked += 1
            spellings += [
                ((*ids, token), text + piece)
                for token, piece in enumerate(PIECES)
                if token != END and expected[token]
            ]
    assert num_checked >= 4


def test_texts_without_a_grammar_allow_all_tokens() -> None:
    grammars = Grammars([b"a", b"b", b""], [], [])
    state = grammars.start(RegexGrammar(pattern="b+"))
    masks = grammars.allowed([None, state, None])
    assert masks.tolist() == [[True, True, True], [False, True, False], [True, True, True]]


def test_forks_are_independent_of_their_origin() -> None:
    grammars = Grammars([b"a", b"b"], [], [])
    state = grammars.start(RegexGrammar(pattern="aab|ba"))
    fork = state.fork()
    fork.consume([0, 0])
    assert grammars.allowed([state, fork]).tolist() == [[True, True], [False, True]]
    again = grammars.start(RegexGrammar(pattern="aab|ba"))  # the compiled one is as it was
    assert grammars.allowed([again]).tolist() == [[True, True]]


def test_control_tokens_are_allowed_only_where_the_grammar_names_them() -> None:
    grammars = Grammars([b"a", b"<|call|>", b"|", b"<", b"call", b">"], [1], [])
    state = grammars.start(EbnfGrammar(text='start: "a" <|call|> "a"'))
    state.consume([0])
    assert grammars.allowed([state]).tolist() == [[False, True, False, False, False, False]]
    text = grammars.start(RegexGrammar(pattern=r"a<\|call\|>"))
    text.consume([0])
    assert grammars.allowed([text]).tolist() == [[False, False, False, True, False, False]]


def next_probs(completion: tuple[int, ...]) -> tuple[float, ...]:
    first = (0.25, 0.125, 0.125, 0.125, 0.25, 0.125)
    return first if len(completion) % 2 == 0 else first[::-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lookahead", "segment_len", "num_candidates"), [(0, 1, 2), (0, 2, 1), (2, 1, 1)]
)
@pytest.mark.parametrize(("grammar", "pattern"), LANGUAGES)
def test_the_law_is_that_of_a_model_without_the_other_tokens(
    grammar: Grammar, pattern: str, lookahead: int, segment_len: int, num_candidates: int
) -> None:
    """The real loop, enumerated, against a table masked by brute force."""

    def masked(completion: tuple[int, ...]) -> list[float]:
        text = "".join(PIECES[token] for token in completion)
        kept = [
            p * (bool(re.fullmatch(pattern, text)) if t == END else viable(pattern, text + piece))
            for t, (piece, p) in enumerate(zip(PIECES, next_probs(completion), strict=True))
        ]
        return [p / sum(kept) for p in kept]

    align = AlignParams(
        schedule=ConstantSchedule(value=0.5),
        beta=0.5,
        segment_len=segment_len,
        max_attempts=2,
        num_candidates=num_candidates,
        lookahead=lookahead,
    )
    reward = TableReward({"a": 0.4, "ab": 0.9, "b": 0.1, "abab": 1.0, "c": 0.3, "aba": -0.5})

    def law(model: TabularModel, sampling: SamplingParams) -> dict[tuple[str, str], float]:
        def run(noise: TreeNoise) -> tuple[str, str]:
            rollout = make_rollout(align=align, sampling=sampling, noise=noise)
            for _ in stars([rollout], model, reward):
                pass
            return rollout.result().text, rollout.result().finish_reason

        return enumerate_law(run)

    plain = SamplingParams(max_tokens=2, temperature=1.0, top_k=None)
    got = law(TabularModel(PIECES, next_probs, end_id=END), plain.replace(grammar=grammar))
    expected = law(TabularModel(PIECES, masked, end_id=END), plain)
    assert got.keys() == expected.keys()
    for outcome, probability in expected.items():
        assert got[outcome] == pytest.approx(probability, abs=1e-12)


# --- the vocabulary ---


@BYTE_TOKENIZERS
def test_pieces_of_byte_tokens(make: Any) -> None:
    kind = make()
    pieces, control = kind.codec.vocabulary(400)
    assert len(pieces) == 400
    assert pieces[kind.first_byte : kind.first_byte + 256] == [bytes([b]) for b in range(256)]
    assert kind.control in control
    assert pieces[kind.control] == b"</s>"
    assert pieces[399] == b""


def test_token_bytes_add_up_to_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    codec = Codec(tokenizer)
    pieces, _ = codec.vocabulary(len(tokenizer))
    for text in ("a film\n\tby {Größe}: 大きさ 🙂", '{"a": [1, 2.5e-3], "b": null}'):
        assert b"".join(pieces[token] for token in codec.encode(text)) == text.encode()


# --- a real backend ---


@pytest.fixture(scope="module")
def backend(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A Llama with random weights."""
    return random_backend("llama", tokenizer, vocab_size=4100, max_position_embeddings=2048)


def answers(backend: Any, rollouts: list[Rollout], reward: Any = None) -> list[StarsResult]:
    for _ in stars(rollouts, backend, reward or TableReward({})):
        pass
    assert [rollout.error for rollout in rollouts] == [None] * len(rollouts)
    return [rollout.result() for rollout in rollouts]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_answers_of_a_random_model_are_valid_json(backend: Any, seed: int) -> None:
    """A hundred random schemas; every finished answer is an instance of its schema."""
    rng = random.Random(seed)
    schemas = [random_schema(rng) for _ in range(80)]
    schemas += [random_leaf(rng) for _ in range(10)]
    tags = ("oneOf", "patternProperties", "if", "allOf")  # as `random_document` has them
    while len(schemas) < 100:
        document = random_document(rng)
        # Parts drawn apart may contradict each other: then the whole is refused.
        if any(tag in document for tag in tags) and held(document) is not None:
            schemas.append(document)
    rollouts = [
        make_rollout(
            seed=seed,
            sample_index=index,
            align=AlignParams(schedule=NoSchedule(), segment_len=16, num_candidates=1),
            sampling=SamplingParams(
                max_tokens=256, top_k=None, grammar=JsonGrammar(json_schema=schema, compact=True)
            ),
        )
        for index, schema in enumerate(schemas)
    ]
    results = answers(backend, rollouts)
    finished = [(s, r) for s, r in zip(schemas, results, strict=True) if r.finish_reason == "stop"]
    assert len(finished) >= 90
    for schema, result in finished:
        check(schema, result.text)
        assert result.text == result.text.strip()


SAMPLING = SamplingParams(
    max_tokens=96,
    top_k=None,
    grammar=JsonGrammar(
        json_schema={
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 2},
            },
            "required": ["name", "tags"],
        }
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize(("segment_len", "lookahead"), [(3, 0), (8, 4)])
def test_the_text_is_the_same_whatever_the_batch(
    backend: Any, segment_len: int, lookahead: int
) -> None:
    def rollouts(num_candidates: int, indices: range) -> list[Rollout]:
        align = AlignParams(
            schedule=ConstantSchedule(value=10.0),
            beta=3.0,
            segment_len=segment_len,
            lookahead=lookahead,
            num_candidates=num_candidates,
            max_attempts=5,
            judge="all",
        )
        return [make_rollout(align=align, sampling=SAMPLING, sample_index=i) for i in indices]

    def texts(results: list[StarsResult]) -> list[str]:
        return [result.text for result in results]

    together = answers(backend, rollouts(1, range(4)), Letters())
    assert sum(result.usage.num_attempts for result in together) > sum(
        result.usage.num_accepted for result in together
    )  # some were rejected
    assert texts(answers(backend, rollouts(4, range(4)), Letters())) == texts(together)
    alone = [answers(backend, rollouts(4, range(i, i + 1)), Letters())[0] for i in range(4)]
    assert texts(alone) == texts(together)
    # Beside rows without a grammar.
    others = [make_rollout((1, 5), seed=3), make_rollout((1, 6), seed=4)]
    mixed = answers(backend, [others[0], *rollouts(2, range(4)), others[1]], Letters())
    assert texts(mixed[1:-1]) == texts(together)


class Letters:
    """Scores a text by its letters."""

    def score(self, inputs: Any) -> Any:
        return [float(sum(map(ord, item.text)) % 17) for item in inputs]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("top_k", [None, 1, 40])
def test_truncation_comes_after_the_mask(
    backend: Any, temperature: float, top_k: int | None
) -> None:
    """So it never leaves nothing, though the model's likeliest tokens are all forbidden."""
    sampling = SAMPLING.replace(temperature=temperature, top_k=top_k, top_p=0.5)
    [result] = answers(backend, [make_rollout(sampling=sampling)])
    assert result.text.startswith("{")
    assert result.text.count('"name"') == 1


def test_a_text_may_end_only_where_it_is_complete(backend: Any) -> None:
    newline, letter = backend.codec.encode("\n")[0], backend.codec.encode("b")[0]
    sampling = SamplingParams(
        grammar=RegexGrammar(pattern="[ab]{4}"),
        stop_token_ids=(newline, letter),
        logit_bias=dict.fromkeys(backend.end_ids, -50.0),
        top_k=None,
    )
    results = answers(backend, [make_rollout(sampling=sampling, seed=seed) for seed in range(20)])
    assert {result.token_ids[-1] for result in results} <= {newline, letter}
    for result in results:
        assert re.fullmatch("[ab]{4}", result.text)
        assert letter not in result.token_ids[:-1]  # it would have ended the text too early


def test_an_empty_mask_is_an_error(backend: Any) -> None:
    ends = dict.fromkeys(backend.end_ids, -float("inf"))
    sampling = SamplingParams(grammar=ChoiceGrammar(choices=("a",)), logit_bias=ends, max_tokens=8)
    rollout = make_rollout(sampling=sampling)
    for _ in stars([rollout], backend, TableReward({})):
        pass
    with pytest.raises(GenerationError, match=r"the grammar leaves no token.*check the grammar"):
        raise rollout.error
    assert rollout.result().text in ("", "a")


@pytest.mark.parametrize(
    ("schema", "is_closed"),
    [
        ({"properties": {"a": {"const": 1}}}, True),
        ({"properties": {"a": {"const": 1}}, "additionalProperties": {"const": 1}}, False),
        ({"anyOf": [{"properties": {"a": {"const": 1}}}]}, True),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"a": {"const": 1}}}}}, True),
        # One part must not forbid what another asks for.
        ({"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {}}}]}, False),
        ({"properties": {"a": {"const": 1}, "allOf": {}}}, True),  # a name, no keyword
        (
            {"$ref": "#/$defs/x", "required": ["a"], "$defs": {"x": {"properties": {"a": {}}}}},
            False,
        ),
        ({"properties": {"a": {}, "b": {"allOf": [{"properties": {"y": {}}}]}}}, True),
        ({"type": "object"}, False),
    ],
)
def test_objects_have_only_the_named_properties(schema: dict[str, Any], is_closed: bool) -> None:
    grammars = Grammars([bytes([byte]) for byte in range(256)], [], [])

    def is_allowed(text: bytes, grammar: JsonGrammar) -> bool:
        state = grammars.start(grammar)
        state.consume(list(text))
        return not state.error

    schema = {"type": "object", **schema}
    grammar = JsonGrammar(json_schema=schema)
    assert is_allowed(b'{"a": 1}', grammar)
    assert is_allowed(b'{"a": 1, "c": 1}', grammar) == (not is_closed)
    assert is_allowed(b'{"a": 1, "c": 1}', grammar.replace(extra_properties=True))
    assert "additionalProperties" not in str(schema) or not is_closed  # left as it was given


def test_values_in_a_schema_are_no_schemas() -> None:
    grammars = Grammars([bytes([byte]) for byte in range(256)], [], [])
    for schema in ({"const": {"properties": {"a": 1}}}, {"enum": [{"properties": {"a": 1}}]}):
        state = grammars.start(JsonGrammar(json_schema=schema, compact=True))
        state.consume(list(b'{"properties":{"a":1}}'))
        assert not state.error


# --- the engine ---


class Review(BaseModel):
    stars: Literal[1, 2, 3, 4, 5]
    verdict: Literal["see it", "skip it"]


def test_the_engine_takes_a_pydantic_model(engine: StarsEngine) -> None:
    sampling = SamplingParams(grammar=Review, max_tokens=80, seed=1)
    results = engine.generate(["A film", "My view"], sampling=sampling)
    assert all(Review.model_validate_json(result.text) for result in results)
    assert {result.finish_reason for result in results} == {"stop"}
    best = engine.best_of_n("A film", 3, sampling=sampling)
    assert Review.model_validate_json(best[0].text)
    assert Review.model_validate_json(engine.vanilla("A film", sampling=sampling)[0].text)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (RegexGrammar(pattern="a("), r"grammar: the regex grammar .* unclosed group"),
        (RegexGrammar(pattern="(?=a)b"), "look-around"),
        (JsonGrammar(json_schema={"not": {}}), r"no value satisfies the schema: .*`not` at #"),
        (JsonGrammar(json_schema={"type": "text"}), "Invalid type: text"),
        (RegexGrammar(pattern="a\\"), "backslash that escapes nothing"),
        (EbnfGrammar(text="start: other"), "ebnf grammar cannot be used: .*other"),
        (EbnfGrammar(text="nothing"), "ebnf grammar cannot be used"),
    ],
)
def test_invalid_grammars(engine: StarsEngine, grammar: Grammar, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        engine.generate("A film", sampling=SamplingParams(grammar=grammar))
    assert "Hint: " in str(caught.value)
    assert "no_forcing" not in str(caught.value)  # nothing of what is added to it


def test_one_bad_grammar_fails_alone(engine: StarsEngine) -> None:
    bad = SamplingParams(grammar=RegexGrammar(pattern="("))
    good = SamplingParams(grammar=ChoiceGrammar(choices=("fine",)))
    results = engine.generate(["A film", "A film"], sampling=[bad, good], return_exceptions=True)
    assert isinstance(results[0], ConfigError)
    assert results[1].text == "fine"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "xml"}, "unknown kind 'xml'; allowed kinds: json, regex, choice, ebnf"),
        ({"kind": "choice", "choices": []}, "a list with at least one item"),
        (int, "int is not a pydantic model. Hint"),
    ],
)
def test_values_that_are_not_grammars(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingParams(grammar=value)


def test_a_missing_library_is_an_error_that_names_the_extra(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    backend = random_backend("llama", tokenizer, vocab_size=4100)
    with pytest.raises(MissingExtraError, match=r"\.\[grammar\]"):
        backend.check_grammar(SamplingParams(grammar=ChoiceGrammar(choices=("a",))))


def test_a_model_without_an_end_of_text(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = random_backend("llama", tokenizer, vocab_size=4100)
    backend.end_ids = frozenset()
    grammar = SamplingParams(grammar=ChoiceGrammar(choices=("a",)))
    with pytest.raises(ConfigError, match=r"no end-of-text token.*stop_token_ids"):
        backend.check_grammar(grammar)
    backend.check_grammar(grammar.replace(stop_token_ids=(3,)))


@pytest.mark.parametrize("compact", [True, False])
def test_whitespace_between_the_parts(*, compact: bool) -> None:
    grammars = Grammars([bytes([byte]) for byte in range(256)], [], [])
    for blank in ("", " ", "\n", "\n  ", "\n\t", "  ", " \n", "\n\n"):
        for text in ('{%s"a": [1, 2]}', '{"a":%s[1,2]}', '{"a": [1,%s2]}', '{"a": [1, 2]%s}'):
            state = grammars.start(JsonGrammar(compact=compact))
            written = text.replace(": ", ":").replace(", ", ",") % blank
            state.consume(list(written.encode()))
            is_allowed = blank == "" if compact else blank in ("", " ", "\n", "\n  ", "\n\t")
            assert (not state.error) == is_allowed, written


def test_grammars_in_files(tmp_path: Any) -> None:
    config = StarsConfig(
        model=TransformersModel(name_or_path="m"),
        reward="r",
        align=AlignParams(schedule=NoSchedule()),
        sampling=SamplingParams(grammar=Review),
    )
    config.to_file(tmp_path / "stars.yaml")
    assert StarsConfig.from_file(tmp_path / "stars.yaml") == config
