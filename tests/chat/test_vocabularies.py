"""Unusual vocabularies: padding that is a character, added words, gaps between ids."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stars_engine import (
    ChoiceGrammar,
    JsonGrammar,
    NoSchedule,
    RegexGrammar,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TransformersModel,
)
from stars_engine.grammars import Grammars
from stars_engine.tokenization.codec import Codec
from tests.support.byte_tokenizers import byte_fallback
from tests.support.chat_templates import random_llama

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(
    vocab: dict[str, int] | None = None, added: Any = (), **special: str
) -> PreTrainedTokenizerFast:
    vocab = vocab or {piece: index for index, piece in enumerate(LETTERS)}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    backend.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **special)


def engine_of(tokenizer: Any, *, vocab_size: int | None = None) -> StarsEngine:
    model = random_llama(tokenizer)
    if vocab_size is not None:
        model.resize_token_embeddings(vocab_size)
    return StarsEngine(
        StarsConfig(
            model=TransformersModel(model=model, tokenizer=tokenizer),
            reward=lambda _, completion: 1.0,
            align={"schedule": NoSchedule(), "segment_len": 8},
            sampling=SamplingParams(max_tokens=40, seed=0, temperature=1.0, top_k=None),
        )
    )


def accepts(codec: Codec, pattern: str, ids: list[int], size: int) -> bool:
    grammars = Grammars(*codec.vocabulary(size), [codec.tokenizer.eos_token_id])
    state = grammars.start(RegexGrammar(pattern=pattern))
    for token in ids:
        if not grammars.allowed([state])[0, token] or not grammars.allows(state, token):
            return False
        state.consume([token])
    return True


# --- padding that is text ---


@pytest.mark.parametrize("token", ["!", "Ġ", "Q", "0"])
@pytest.mark.parametrize("late", [False, True])
def test_padding_that_is_a_character_is_text(token: str, late: bool) -> None:
    tokenizer = byte_level(**({} if late else {"pad_token": token}))
    if late:
        tokenizer.pad_token = token
    codec = Codec(tokenizer)
    text = f"Stop!  Q{token}0{token}{token} now"
    ids = codec.encode(text)
    assert codec.decode(ids) == text
    assert codec.completion_text(codec.encode("A"), codec.encode_continuation(text))[0] == text
    assert token not in codec.reserved_tokens
    if token != "Ġ":  # as typed, it is two bytes
        assert tokenizer.pad_token_id in ids
        assert accepts(codec, f"[{token}]+a", codec.encode(f"{token}{token}a"), len(tokenizer))


def test_padding_that_is_a_word_is_text() -> None:
    vocab = {piece: index for index, piece in enumerate([*LETTERS, "ab"])}
    backend = Tokenizer(models.BPE(vocab, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="ab")
    codec = Codec(tokenizer)
    assert tokenizer.pad_token_id in codec.encode("xabx")
    assert codec.decode(codec.encode("xabx")) == "xabx"


@pytest.mark.parametrize("token", ["<pad>", "[PAD]", "padding"])
def test_a_separate_padding_token_is_not_text(token: str) -> None:
    codec = Codec(byte_level(pad_token=token))
    assert token in codec.reserved_tokens
    assert codec.tokenizer.pad_token_id not in codec.encode(f"a{token}b")
    assert codec.decode([64, codec.tokenizer.pad_token_id, 65]) == "ab"


def test_an_end_of_text_that_is_a_character_is_text_before_the_end() -> None:
    codec = Codec(byte_level(bos_token="\u010a"))  # a line feed
    assert codec.decode(codec.encode("a\nb")) == "a\nb"


def test_a_grammar_writes_a_padding_character() -> None:
    engine = engine_of(byte_level(pad_token="!"))
    for grammar in (
        ChoiceGrammar(choices=["Hey!!!"]),
        RegexGrammar(pattern="Hey!{3}"),
        JsonGrammar(json_schema={"const": "Hey!!!"}),
    ):
        [result] = engine.generate("Say!", sampling=engine.sampling.replace(grammar=grammar))
        text = json.loads(result.text) if isinstance(grammar, JsonGrammar) else result.text
        assert text == "Hey!!!"
        assert result.finish_reason == "stop"


# --- added words ---

WORDS = ["café", "naïve", "日本", "Ġx", "ÄÄ", "smile 🙂"]


@pytest.mark.parametrize("word", WORDS)
def test_added_words_are_decoded_unchanged(word: str) -> None:
    tokenizer = byte_level(added=WORDS)
    codec = Codec(tokenizer)
    token = tokenizer.convert_tokens_to_ids(word)
    text = f"a {word} b{word}"
    ids = codec.encode(text)
    assert ids == tokenizer(text)["input_ids"]  # as the tokenizer has it
    assert ids.count(token) == 2
    assert codec.decode(ids) == text
    assert codec.completion_text(codec.encode("A"), ids) == (text, len(ids))
    half = codec.encode("🙂")[:2]
    assert codec.completion_text([64], [*half, token]) == (f"\ufffd{word}", 3)
    assert codec.completion_text([64], [token, *half]) == (word, 1)
    pieces, control = codec.vocabulary(len(tokenizer))
    assert pieces[token] == word.encode()
    assert token not in control
    assert accepts(codec, ".+", [token, *codec.encode("b")], len(tokenizer))
    assert accepts(codec, word, [token], len(tokenizer))


def test_added_letters_that_encode_bytes_leave_other_text_alone() -> None:
    """The vocabulary has them already, as bytes: their tokens are those of the bytes."""
    tokenizer = byte_level(added=["é", "½", "Ġ", "õ"])
    assert len(tokenizer) == len(LETTERS) + 1
    codec = Codec(tokenizer)
    for text in ("a ½ é b", "ý 鳥 é", "õĠ x\n"):
        assert codec.decode(codec.encode(text)) == text


def test_added_spaces_of_sentencepiece_are_spaces() -> None:
    """Gemma's tokenizer looks for its pieces of several blanks, as for added tokens."""
    state = json.loads(byte_fallback().codec.tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["▁▁"] = len(state["model"]["vocab"])
    backend = Tokenizer.from_str(json.dumps(state))
    backend.add_tokens([AddedToken("▁▁", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    codec = Codec(tokenizer)
    token, a = tokenizer.convert_tokens_to_ids("▁▁"), tokenizer.convert_tokens_to_ids("a")
    assert codec.decode([a, token, a]) == "a  a"
    assert codec.vocabulary(len(tokenizer))[0][token] == b"  "


def test_added_words_of_byte_fallback() -> None:
    backend = Tokenizer.from_str(byte_fallback().codec.tokenizer.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("low▁line", normalized=False), AddedToken("café")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    codec = Codec(tokenizer)
    for word in ("low▁line", "café"):
        token = tokenizer.convert_tokens_to_ids(word)
        assert codec.decode([token]) == word
        assert codec.vocabulary(len(tokenizer))[0][token] == word.encode()


# --- holes ---


def with_holes() -> PreTrainedTokenizerFast:
    """Ids with gaps: some lie beyond the number of tokens."""
    vocab = {piece: 3 * index for index, piece in enumerate(LETTERS)}
    return byte_level(vocab, added=["café"])


def test_grammars_write_ids_beyond_the_number_of_tokens() -> None:
    tokenizer = with_holes()
    codec = Codec(tokenizer)
    size = 1 + max(tokenizer.get_vocab().values()) + 64
    assert size > len(tokenizer) + 64
    ids = codec.encode("zebra")
    assert max(ids) < size
    pieces, control = codec.vocabulary(size)
    assert accepts(codec, "zebra", ids, size)
    names = {token: name for name, token in tokenizer.get_vocab().items()}
    assert all((token in names) == bool(piece) for token, piece in enumerate(pieces))
    assert set(control) <= names.keys()
    # No id without a token leads on, nor stands for nothing.
    grammars = Grammars(pieces, control, [tokenizer.eos_token_id])
    allowed = grammars.allowed([grammars.start(RegexGrammar(pattern=".*"))])[0]
    holes = [token for token in range(size) if token not in names]
    assert len(holes) > 500
    assert not allowed[holes].any()
    state = grammars.start(RegexGrammar(pattern=".*"))
    assert not any(grammars.allows(state, token) for token in holes[::50])


def test_control_tokens_in_prompts_are_text_in_a_vocabulary_with_holes() -> None:
    codec = Codec(with_holes())
    text = "a</s>b café"
    assert codec.tokenizer.eos_token_id not in codec.encode(text)
    assert codec.decode(codec.encode(text)) == text


@pytest.mark.parametrize("more", [0, 40])
def test_answers_of_a_grammar_in_a_vocabulary_with_holes(more: int) -> None:
    tokenizer = with_holes()
    size = 1 + max(tokenizer.get_vocab().values()) + more
    engine = engine_of(tokenizer, vocab_size=size)
    names = set(tokenizer.get_vocab().values())
    for seed in range(4):
        grammar = RegexGrammar(pattern="[w-z]{3} café")
        sampling = engine.sampling.replace(grammar=grammar, seed=seed)
        [result] = engine.generate("Go", sampling=sampling)
        assert result.finish_reason == "stop"
        assert set(result.token_ids) <= names
        assert result.text.endswith(" café")
        assert len(result.text) == 8
