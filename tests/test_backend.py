"""The local backend against transformers itself, on small real and random models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from stars_engine import (
    AlignParams,
    ContextOverflowError,
    GenerationError,
    ModelLoadError,
    NoSchedule,
    PromptError,
    SamplingParams,
    StarsEngine,
    StarsWarning,
    TokenIds,
)
from stars_engine.backends.base import Draft, DraftRequest
from stars_engine.backends.decoders import CachedDecoder, FullDecoder
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.config import TransformersModel
from stars_engine.errors import ConfigError
from stars_engine.sampling import inverse_cdf, propose
from stars_engine.testing import check_backend
from tests.conftest import shared_model

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {},
    "mamba": {"state_size": 4},
}


def random_backend(family: str, tokenizer: object, **more: object) -> TransformersBackend:
    torch.manual_seed(0)
    fields = {**SMALL, **FAMILIES.get(family, {}), **more}
    if family == "falcon":  # its head size is computed
        del fields["head_dim"]
    config = CONFIG_MAPPING[family](**fields)
    model = AutoModelForCausalLM.from_config(config)
    return TransformersBackend(TransformersModel(model=model, tokenizer=tokenizer))


@pytest.fixture(scope="module")
def tokenizer(engine: StarsEngine) -> object:
    return engine.model.codec.tokenizer


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_drafts_what_it_would_alone(family: str, tokenizer: object) -> None:
    backend = random_backend(family, tokenizer)
    expected = FullDecoder if family == "mamba" else CachedDecoder
    assert isinstance(backend.decoder, expected), backend.path
    prompts = [[1, 5, 9], list(range(3, 30)), [7], [4, 4, 8, 9, 10, 3]]
    check_backend(backend, prompts)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "bloom"])
def test_cached_logits_equal_uncached_ones(family: str, tokenizer: object) -> None:
    model = random_backend(family, tokenizer).model
    prompts = [list(range(3, 30)), [7, 8, 9]]
    with torch.inference_mode():
        runs = []
        for decoder in (CachedDecoder(model), FullDecoder(model)):
            prefixes = decoder.start(prompts)
            decoder.extend([(prefix, [5, 6, 7, 8]) for prefix in prefixes])
            logits = [torch.stack([prefix.next_logits for prefix in prefixes])]
            branches = decoder.branch([prefixes[0], prefixes[1], prefixes[0]])
            logits += [branches.step(torch.tensor([3, 4, 5])) for _ in range(3)]
            runs.append(torch.cat(logits))
    torch.testing.assert_close(runs[0], runs[1], atol=1e-4, rtol=1e-4)


def test_contract_on_real_models(
    tinystories: TransformersBackend, stories260k: TransformersBackend
) -> None:
    for backend in (tinystories, stories260k):
        check_backend(backend, [[1, 50, 60], [1], [1, 9, 8, 7, 6, 5, 4, 3]])


def test_end_ids_may_be_a_list(stories260k: TransformersBackend) -> None:
    assert stories260k.end_ids == {1, 2}
    assert stories260k.is_end(1, SamplingParams())
    assert stories260k.is_end(77, SamplingParams(stop_token_ids=[77]))
    assert not stories260k.is_end(77, SamplingParams())


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("decoder", [CachedDecoder, FullDecoder])
def test_a_row_that_has_ended_reads_nothing_beyond_the_context(
    family: str, decoder: type, tokenizer: object
) -> None:
    """Learned positions end with the context: 9 tokens of the long row, 32 of the short one."""
    backend = random_backend(family, tokenizer, n_positions=64, max_position_embeddings=64)
    assert backend.context_len == 64
    backend.decoder = decoder(backend.model, backend.context_len)
    slots = backend.prefill([list(range(3, 58)), [7, 8]])
    sampling = SamplingParams(logit_bias={2: -float("inf")}, top_k=None)
    requests = [
        DraftRequest(slot, [0.1 + 0.02 * i for i in range(size)], sampling)
        for slot, size in zip(slots, (9, 32), strict=True)
    ]
    together = backend.draft(requests)
    assert [len(draft.token_ids) for draft in together] == [9, 32]
    assert together == [backend.draft([request])[0] for request in requests]


def test_longrope_is_read_up_to_its_border(
    tokenizer: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond it the rotary factors depend on the longest row of the batch."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    backend = random_backend(
        "phi3",
        tokenizer,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 32,
            **factors,
        },
    )
    assert backend.context_len == 32
    assert "32 tokens at most, not 128" in caplog.text
    slots = backend.prefill([list(range(3, 27)), [7, 8]])
    requests = [
        DraftRequest(slot, [0.5] * size, SamplingParams(top_k=None))
        for slot, size in zip(slots, (8, 30), strict=True)
    ]
    assert backend.draft(requests) == [backend.draft([request])[0] for request in requests]


# --- the proposal ---


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.7, top_k=None),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.3, top_k=None, top_p=0.8),
        SamplingParams(temperature=1.0, top_k=20, top_p=0.9, min_p=0.05),
        SamplingParams(temperature=0.9, top_k=None, repetition_penalty=1.4),
    ],
)
def test_proposal_equals_the_processors_of_transformers(sampling: SamplingParams) -> None:
    torch.manual_seed(1)
    logits = torch.randn(6, 50, dtype=torch.float64) * 2
    prompt, completion = torch.randint(50, (6, 4)), torch.randint(50, (6, 3))
    counts = torch.zeros(6, 50, dtype=torch.long).scatter_add_(
        1, completion, torch.ones_like(completion)
    )
    in_prompt = torch.zeros(6, 50, dtype=torch.bool).scatter_(1, prompt, value=True)
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    expected = processors(torch.cat([prompt, completion], 1), logits.clone()).softmax(-1)
    got = propose(logits, sampling, counts=counts, in_prompt=in_prompt)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-9)


def test_presence_and_frequency_count_the_completion_only() -> None:
    sampling = SamplingParams(
        temperature=1.0, top_k=None, presence_penalty=0.5, frequency_penalty=0.25
    )
    logits = torch.zeros(1, 3)
    counts, in_prompt = torch.tensor([[0, 1, 2]]), torch.tensor([[True, False, False]])
    got = propose(logits, sampling, counts=counts, in_prompt=in_prompt)
    expected = torch.tensor([[0.0, -0.75, -1.0]], dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(got, expected)


def test_bias_bans_and_temperature_0() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    greedy = propose(logits, SamplingParams(temperature=0))
    assert greedy.tolist() == [[0, 1, 0, 0]]  # the lowest id of equals
    biased = SamplingParams(temperature=0, logit_bias={3: 9.0})
    assert propose(logits, biased).argmax().item() == 3
    banned = propose(logits, SamplingParams(top_k=None, temperature=1.0), banned_ids=[1, 2])
    assert banned[0, 1:3].tolist() == [0, 0]


def test_inverse_cdf_never_draws_the_impossible() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    uniforms = [0.0, 0.2499, 0.25, 0.9999999999999999]
    drawn = [inverse_cdf(probs, torch.tensor([u], dtype=torch.float64)).item() for u in uniforms]
    assert drawn == [1, 1, 3, 3]


def test_penalties_follow_their_row_and_are_rewound(engine: StarsEngine) -> None:
    """A huge frequency penalty forbids repeats inside a draft and across committed segments."""
    model = engine.model
    sampling = SamplingParams(temperature=1.0, top_k=5, frequency_penalty=1e4, max_tokens=40)
    align = AlignParams(schedule={"kind": "constant", "value": 0.5}, segment_len=8, max_attempts=3)
    [result] = engine.generate("The", sampling=sampling.replace(seed=1), align=align)
    assert result.usage.num_attempts > len(result.segments)
    assert len(set(result.token_ids)) == len(result.token_ids)
    [slot] = model.prefill([[1, 9, 9]])
    request = DraftRequest(slot, [0.3] * 6, sampling)
    assert model.draft([request] * 3) == [model.draft([request])[0]] * 3


def test_min_tokens_holds_back_the_end(engine: StarsEngine) -> None:
    align = AlignParams(schedule=NoSchedule(), segment_len=16)
    sampling = SamplingParams(seed=0, n=16, max_tokens=100)
    free = engine.generate("Bad", sampling=sampling, align=align)
    assert min(len(r.token_ids) for r in free) < 60
    held = engine.generate("Bad", sampling=sampling.replace(min_tokens=60), align=align)
    assert min(len(r.token_ids) for r in held) >= 60


# --- when there is no token to draw ---

NONE_BUT_END = dict.fromkeys((i for i in range(64) if i != 2), -float("inf"))


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (SamplingParams(logit_bias=NONE_BUT_END, min_tokens=3), "logit_bias"),
        (SamplingParams(logit_bias=NONE_BUT_END, min_tokens=3, temperature=0), "logit_bias"),
        (SamplingParams(stop_token_ids=range(64), min_tokens=1, top_p=0.9), "stop_token_ids"),
        (SamplingParams(temperature=1e-320, frequency_penalty=0.1), "temperature=1e-320"),
    ],
)
def test_a_row_without_a_token_fails_alone(
    tokenizer: object, sampling: SamplingParams, words: str
) -> None:
    backend = random_backend("llama", tokenizer)
    slots = backend.prefill([[3, 4], [5]])
    good = DraftRequest(slots[0], [0.5] * 6, SamplingParams())
    error, ids = backend.draft([DraftRequest(slots[1], [0.5] * 6, sampling), good])
    assert isinstance(error, GenerationError)
    assert words in str(error)
    assert ids == backend.draft([good])[0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_logits_that_are_nan_fail_their_row(
    tokenizer: object, temperature: float, top_p: float
) -> None:
    backend = random_backend("llama", tokenizer)
    slots = backend.prefill([[3, 4], [5]])
    slots[1].next_logits = slots[1].next_logits * float("nan")
    sampling = SamplingParams(temperature=temperature, top_p=top_p)
    ids, error = backend.draft([DraftRequest(slot, [0.5] * 3, sampling) for slot in slots])
    assert isinstance(error, GenerationError)
    assert "dtype='float32'" in str(error)
    assert ids == backend.draft([DraftRequest(slots[0], [0.5] * 3, sampling)])[0]


def test_ends_outside_the_vocabulary_are_none(tokenizer: object) -> None:
    assert random_backend("llama", tokenizer, eos_token_id=[2, 64, 999]).end_ids == {2}


# --- text ---


def test_an_emoji_split_over_segments_is_held_back(engine: StarsEngine) -> None:
    """Byte-level tokens: each emoji is several tokens, each segment one token."""
    model = engine.model
    text = " \U0001f642 fine \U0001f600"
    ids = model.codec.encode_prompt(text)[1:]
    assert len(ids) > len(text)

    class Dictated:
        """The real model and tokenizer, saying what it is told."""

        def __getattr__(self, name: str) -> object:
            return getattr(model, name)

        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            done = [len(r.slot.token_ids) - r.slot.num_prompt_tokens for r in requests]
            return [Draft((ids[position],)) for position in done]

    seen: list[str] = []
    config = engine.config.replace(align=AlignParams(schedule=NoSchedule(), segment_len=1))

    class Reward:
        def score(self, inputs: Sequence) -> list[float]:
            seen.extend(item.text for item in inputs)
            return [0.0] * len(inputs)

    dictated = StarsEngine(config, model=Dictated(), reward=Reward())
    sampling = SamplingParams(max_tokens=len(ids))
    events = list(dictated.stream("A", sampling=sampling))
    assert "".join(event.text for event in events) == text
    assert all("\ufffd" not in part for part in [*seen, *(event.text for event in events)])
    assert "" in [event.text for event in events]  # something waited
    cut = list(dictated.stream("A", sampling=sampling.replace(max_tokens=len(ids) - 1)))
    assert cut[-1].result.text == " \U0001f642 fine "


def test_a_typed_control_token_is_text(engine: StarsEngine) -> None:
    typed = engine.model.codec.encode_prompt("good<|endoftext|>")
    assert not engine.model.end_ids & set(typed)
    [result] = engine.generate("good<|endoftext|> movie", sampling=SamplingParams(seed=1))
    assert result.usage.num_prompt_tokens > 5
    assert result.text


def test_an_empty_prompt_begins_a_text(engine: StarsEngine) -> None:
    [result] = engine.generate("", sampling=SamplingParams(seed=1, max_tokens=16))
    assert result.usage.num_prompt_tokens == 1
    assert result.token_ids


# --- limits and bad input ---


def test_context_overflow_is_raised_before_any_work_or_clamped(engine: StarsEngine) -> None:
    long = TokenIds([5] * 500)
    with pytest.raises(ContextOverflowError, match=r"500 tokens.*512.*at most 12"):
        engine.generate(long)
    [result] = engine.generate(long, sampling=SamplingParams(seed=1, on_overflow="clamp"))
    assert len(result.token_ids) <= 12
    with pytest.raises(ContextOverflowError, match="shorten the prompt"):
        engine.generate(TokenIds([5] * 512), sampling=SamplingParams(on_overflow="clamp"))
    ok, bad = engine.generate(
        ["fine", long], sampling=SamplingParams(max_tokens=16), return_exceptions=True
    )
    assert ok.text
    assert isinstance(bad, ContextOverflowError)


def test_ids_outside_the_vocabulary(engine: StarsEngine) -> None:
    with pytest.raises(PromptError, match="4096"):
        engine.generate(TokenIds([4096]))
    with pytest.raises(ConfigError, match=r"logit_bias.*9999"):
        engine.generate("a", sampling=SamplingParams(logit_bias={9999: 1.0}))


def test_checkpoints_that_cannot_be_used(tmp_path: Path, engine: StarsEngine) -> None:
    with pytest.raises(ModelLoadError, match="no such directory"):
        TransformersBackend(TransformersModel(name_or_path=str(tmp_path / "nowhere")))
    model = engine.model.model
    bare = tmp_path / "bare"
    model.save_pretrained(bare)
    with pytest.raises(ModelLoadError, match="tokenizer_name_or_path"):
        TransformersBackend(TransformersModel(name_or_path=str(bare)))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    model.config.save_pretrained(pickled)
    engine.model.codec.tokenizer.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pickled.*save_pretrained"):
        TransformersBackend(TransformersModel(name_or_path=str(pickled)))
    with pytest.raises(ModelLoadError, match="CUDA devices"):
        TransformersBackend(TransformersModel(name_or_path="stars:embedded-lm", device="cuda:7"))
    borrowed = TransformersModel(
        name_or_path=str(bare), tokenizer_name_or_path=shared_model("TinyStories-656K")
    )
    assert TransformersBackend(borrowed).vocab_size == 4096


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name_or_path": "stars:lm"}, ["stars:lm", "stars:embedded-lm, stars:embedded-reward"]),
        ({"name_or_path": "{empty}"}, ["name_or_path=", "no model", "config.json"]),
        (
            {"name_or_path": "stars:embedded-lm", "tokenizer_name_or_path": "{empty}/no/where"},
            ["tokenizer_name_or_path=", "no such directory"],
        ),
        ({"name_or_path": "nobody/nothing"}, ["network", "local directory"]),
        (
            {"name_or_path": "stars:embedded-lm", "tokenizer_name_or_path": "nobody/nothing"},
            ["nobody/nothing", "network", "local directory"],
        ),
    ],
)
def test_load_errors_name_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], words: list[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named = {name: value.format(empty=tmp_path) for name, value in fields.items()}
    with pytest.raises(ModelLoadError) as caught:
        TransformersBackend(TransformersModel(**named))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert ".." not in message


def test_a_callers_tokenizer_keeps_its_template(engine: StarsEngine, tokenizer: object) -> None:
    before = tokenizer.chat_template
    live = TransformersModel(model=engine.model.model, tokenizer=tokenizer, chat_template="hi")
    assert TransformersBackend(live).codec.tokenizer.chat_template == "hi"
    assert tokenizer.chat_template == before


def test_a_classifier_as_language_model_warns() -> None:
    with pytest.warns(StarsWarning, match=r"head of a classifier \(score\.weight\)"):
        TransformersBackend(TransformersModel(name_or_path=shared_model("rm-sentiment-656K")))


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path, tokenizer: object) -> None:
    for tied in (True, False):
        config = CONFIG_MAPPING["llama"](**SMALL, tie_word_embeddings=tied)
        model = AutoModelForCausalLM.from_config(config)
        weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
        model.save_pretrained(tmp_path, state_dict=weights)
        tokenizer.save_pretrained(tmp_path)
        if tied:
            TransformersBackend(TransformersModel(name_or_path=str(tmp_path)))
    with pytest.raises(ModelLoadError, match=r"lacks weights.*lm_head\.weight"):
        TransformersBackend(TransformersModel(name_or_path=str(tmp_path)))


def test_a_peft_adapter_changes_the_model(tmp_path: Path, tokenizer: object) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**SMALL))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    torch.nn.init.normal_(
        adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B.default.weight
    )
    adapted.save_pretrained(tmp_path / "adapter")
    name = str(tmp_path / "base")
    plain = TransformersBackend(TransformersModel(name_or_path=name))
    tuned = TransformersBackend(
        TransformersModel(name_or_path=name, adapter_path=str(tmp_path / "adapter"))
    )
    assert tuned.path == "kv cache"
    [a], [b] = plain.prefill([[3, 4]]), tuned.prefill([[3, 4]])
    assert (a.next_logits - b.next_logits).abs().max() > 1e-4
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="adapter_path"):
        TransformersBackend(
            TransformersModel(name_or_path=name, adapter_path=str(tmp_path / "adapter"))
        )


def test_a_bias_that_leaves_nothing_to_draw(engine: StarsEngine) -> None:
    banned = dict.fromkeys(range(4096), -float("inf"))
    with pytest.raises(ConfigError, match="leaves none to draw"):
        engine.generate("a", sampling=SamplingParams(logit_bias=banned))
    del banned[77]
    sampling = SamplingParams(logit_bias=banned, max_tokens=3)
    assert engine.generate("a", sampling=sampling)[0].token_ids == (77, 77, 77)
