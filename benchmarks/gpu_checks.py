"""Checks of the engine on a device: equal texts, equal rewards, and what happens without memory.

`benchmarks.gpu_bringup` runs them. Each check returns its figures, among them `ok`. Texts of the
engine are a function of prompt, seed and config, so every check compares token ids. In float32 they
must be equal. In half precision the shape of a batch changes the last bits of the logits, so a
draw near the border of two tokens may differ; then the figures say where, and `ok` requires only
that the first segment's logits agree within rounding.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from benchmarks.gpu_runs import LENGTHS, NUM_TOKENS, Bench, Figures, generate, random_prompts
from benchmarks.pair import Pair
from benchmarks.tiny_models import SMALL, random_model
from stars_engine import (
    AlignParams,
    ClassifierReward,
    ConstantSchedule,
    EngineParams,
    JsonGrammar,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TransformersModel,
)
from stars_engine.backends.base import DraftRequest, PrefixHandle
from stars_engine.backends.decoders import Decoder
from stars_engine.backends.shared import SharedPrefixDecoder
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.backends.uncached import UncachedDecoder
from stars_engine.types import RewardInput, RewardPrompt, TokenIds

FAMILIES = ("llama", "gemma2", "gemma3_text", "qwen3", "mixtral", "gpt_oss")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 12},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "seen": {"type": "boolean"},
    },
    "required": ["title", "stars", "seen"],
    "additionalProperties": False,
}


# --- the embedded pair ---


def embedded_pair(bench: Bench) -> Figures:
    """The embedded pair on the device against the CPU: texts, rewards, and answers by a grammar."""
    prompts = ["The film", "I watched this", "Nobody expected", "A story of", "What a", "The plot"]
    sampling = SamplingParams(max_tokens=48, seed=5)
    grammar = JsonGrammar(json_schema=SCHEMA, compact=True)
    found: dict[str, dict[str, list[Any]]] = {}
    for device in ("cpu", bench.device):
        config = StarsConfig(
            model=TransformersModel(name_or_path="stars:embedded-lm", device=device),
            reward=ClassifierReward(name_or_path="stars:embedded-reward", device=device),
            align=AlignParams(schedule=ConstantSchedule(value=0.5), segment_len=8),
        )
        with StarsEngine(config) as engine:
            runs = found[device] = {"path": [engine.load().model.path]}
            for count in (1, 4, "auto"):
                align = config.align.replace(num_candidates=count)
                results = engine.generate(prompts, sampling=sampling, align=align)
                runs[f"texts, m = {count}"] = [result.text for result in results]
                runs["rewards"] = [result.reward for result in results]
            bounded = sampling.replace(grammar=grammar, max_tokens=96)
            runs["json"] = [result.text for result in engine.generate(prompts, sampling=bounded)]
    here, there = found["cpu"], found[bench.device]
    rewards = zip(here["rewards"], there["rewards"], strict=True)
    difference = max(abs(a - b) for a, b in rewards)
    equal = {name: here[name] == there[name] for name in here if name.startswith("texts")}
    parsed = [json.loads(text) for text in there["json"]]
    return {
        "path": there["path"][0],
        "equal": equal,
        "json_equal": here["json"] == there["json"],
        "largest_difference_of_rewards": difference,
        "ok": all(equal.values())
        and difference < 1e-3
        and all(set(answer) == set(SCHEMA["properties"]) for answer in parsed),
    }


# --- equal drafts and texts ---


def families(bench: Bench) -> Figures:
    """Drafts of tiny models of several families, with graphs and without, against no cache."""
    report: Figures = {}
    for family in FAMILIES:
        model = random_model(family, **SIZES).to(bench.device)
        backend = TransformersBackend(TransformersModel(model=model, tokenizer=_no_words()))
        wanted = _drafts(backend, UncachedDecoder(model, 512))
        eager = _drafts(backend, SharedPrefixDecoder(model, 512))
        graphs = _drafts(backend, SharedPrefixDecoder(model, 512, use_graphs=True))
        report[family] = {
            "path": backend.path,
            "eager": eager == wanted,
            "graphs": graphs == wanted,
        }
    ok = all(each["eager"] and each["graphs"] for each in report.values())
    return {**report, "ok": ok}


def _no_words() -> Any:
    words = {f"t{index}": index for index in range(SMALL["vocab_size"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="t0")


def _drafts(backend: TransformersBackend, decoder: Decoder) -> list[Any]:
    """Three steps on three prefixes; the first candidate of each is accepted."""
    backend.decoder = decoder
    plain = SamplingParams(top_k=20, top_p=0.9)
    penalized = SamplingParams(repetition_penalty=1.3, min_tokens=3)
    texts = [([1 + (7 * i) % 60 for i in range(n)], PrefixHandle()) for n in (37, 5, 18)]
    prompt_lens = [len(ids) for ids, _ in texts]
    found: list[Any] = []
    for turn, counts in enumerate([(3, 1, 2), (1, 4, 4), (3, 1, 2)]):
        requests = [
            DraftRequest(
                tuple(ids),
                prompt_len,
                [(0.37 * (k + 1) * (i + 2) + 0.11 * turn) % 1 for i in range(12)],
                (plain, penalized)[k % 2],
                2,
                handle,
            )
            for (ids, handle), prompt_len, count in zip(texts, prompt_lens, counts, strict=True)
            for k in range(count)
        ]
        drafts = backend.draft(requests)
        found.append([(draft.token_ids, draft.lookahead_ids) for draft in drafts])  # type: ignore[union-attr]
        firsts = [drafts[sum(counts[:index])] for index in range(3)]
        for (ids, _), draft in zip(texts, firsts, strict=True):
            ids.extend(draft.token_ids)  # type: ignore[union-attr]
    return found


def texts_float32(bench: Bench) -> Figures:
    """Whole answers in float32: candidates, batch and graphs must not change a token."""
    return _texts(bench, torch.float32)


def texts_half(bench: Bench) -> Figures:
    """Whole answers in bfloat16: where batches or graphs change a token."""
    return _texts(bench, torch.bfloat16)


def _texts(bench: Bench, dtype: torch.dtype) -> Figures:
    pair = bench.pair(dtype)
    model, context_len = pair.lm.model, pair.lm.context_len
    chosen = pair.lm.decoder
    prompts = random_prompts(pair, LENGTHS)
    threshold = _median_reward(pair, prompts[0])
    arms: dict[str, tuple[Decoder, int | str, bool]] = {
        "no cache, m = 1, alone": (UncachedDecoder(model, context_len), 1, True),
        "chosen, m = 1, alone": (chosen, 1, True),
        "chosen, m = 4, alone": (chosen, 4, True),
        "chosen, m = auto, alone": (chosen, "auto", True),
        "chosen, m = 4, together": (chosen, 4, False),
        "chosen, m = auto, together": (chosen, "auto", False),
        "without graphs, m = 4, together": (SharedPrefixDecoder(model, context_len), 4, False),
    }
    found = {}
    for name, (decoder, count, alone) in arms.items():
        pair.lm.decoder = decoder
        few = prompts[:2] if name.startswith("no cache") else prompts
        found[name] = generate(pair, few, threshold, count, alone=alone)
    pair.lm.decoder = chosen
    wanted = found["chosen, m = 1, alone"]
    firsts = {
        name: [_first_difference(a, b) for a, b in zip(ids, wanted, strict=False)]
        for name, ids in found.items()
    }
    exact = all(first is None for each in firsts.values() for first in each)
    logits, scale = _logits_difference(pair, prompts[0])
    return {
        "path": pair.lm.path,
        "reward_path": pair.rm.path,
        "first_difference_from_m1_alone": firsts,
        "logits_difference": logits,
        "largest_logit": scale,
        "ok": logits < (1e-4 if dtype == torch.float32 else 6e-2) * max(1.0, scale)
        and (exact or dtype != torch.float32),
    }


def _median_reward(pair: Pair, prompt: Sequence[int]) -> float:
    with StarsEngine(
        StarsConfig(sampling=SamplingParams(max_tokens=16, n=15, seed=1)),
        model=pair.lm,
        reward=pair.rm,
    ) as engine:
        results = engine.generate([TokenIds(prompt)], align=AlignParams(schedule=NoSchedule()))
    return sorted(result.reward for result in results)[len(results) // 2]


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), None)


@torch.inference_mode()
def _logits_difference(pair: Pair, prompt: Sequence[int]) -> tuple[float, float]:
    """Compare decoded logits with a plain forward pass; return the difference and the scale."""
    ids = list(prompt)
    [prefix] = pair.lm.decoder.compute([(ids[:-8], None)])
    branches = pair.lm.decoder.branch([prefix], 8)
    device = prefix.last_output.device
    for token in ids[-8:]:
        logits = branches.step(torch.tensor([token], device=device)).float()
    plain = pair.lm.model(torch.tensor([ids], device=device)).logits[0, -1].float()
    return (logits[0] - plain).abs().max().item(), plain.abs().max().item()


# --- rewards ---


def rewards(bench: Bench) -> Figures:
    """Rewards that read only new tokens, against a plain forward pass of the whole text."""
    pair = bench.pair(torch.float32)
    ids = list(pair.prompt(96, 1))
    prompt = RewardPrompt("", token_ids=tuple(ids[:40]))
    differences = []
    for end in range(48, 97, 8):
        [score] = pair.rm.score([RewardInput(prompt, "", tuple(ids[40:end]))])
        with torch.inference_mode():
            plain = pair.reward_model(torch.tensor([ids[:end]], device=bench.device)).logits
        differences.append(abs(float(getattr(score, "value", score)) - plain.item()))
    return {"path": pair.rm.path, "differences": differences, "ok": max(differences) < 1e-4}


# --- sharing a device, and running out of memory ---


def two_engines(bench: Bench) -> Figures:
    """Two engines on one device, on threads of their own: each writes what it writes alone."""

    def new_pairs() -> list[Pair]:
        other = Pair(bench.size, torch.float32, 512, bench.device, bench.clock)
        return [bench.pair(torch.float32), other]

    pairs = new_pairs()
    prompts = [random_prompts(pair, LENGTHS) for pair in pairs]
    alone = [generate(pair, each, 0.0, 4) for pair, each in zip(pairs, prompts, strict=True)]
    pairs.clear()
    fresh = new_pairs()  # their graphs are captured while the other one runs
    together: list[Any] = [None, None]

    def run(index: int) -> None:
        together[index] = generate(fresh[index], prompts[index], 0.0, 4)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"equal": together == alone, "ok": together == alone}


def small_cache(bench: Bench) -> Figures:
    """A cache for a few prefixes: requests wait, texts stay."""
    pair = bench.pair(torch.float32)
    prompts = random_prompts(pair, LENGTHS)
    wanted = generate(pair, prompts, 0.0, 4)
    # Slots are longer than texts, so this holds two of the longest.
    num_bytes = 4 * (max(LENGTHS) + NUM_TOKENS) * pair.lm.bytes_per_token
    found = generate(pair, prompts, 0.0, 4, engine_params=EngineParams(max_cache_bytes=num_bytes))
    return {"max_cache_bytes": num_bytes, "equal": found == wanted, "ok": found == wanted}


def full_device(bench: Bench) -> Figures:
    """A device with almost no memory left: fewer candidates at once, later, the same texts."""
    pair = bench.pair(torch.float32)
    prompts = random_prompts(pair, LENGTHS * 4)
    wanted = generate(pair, prompts, 0.0, 4)
    pair.lm.free_unused()
    bench.free()
    if not bench.on_gpu:
        return {"equal": None, "note": "needs a GPU: a CPU's memory cannot be filled", "ok": True}
    free_bytes, _ = torch.cuda.mem_get_info(bench.device)
    # What eight prompts and their candidates need, roughly; 32 do not fit.
    left = 8 * 4 * (max(LENGTHS) + NUM_TOKENS) * pair.lm.bytes_per_token + (256 << 20)
    filler = torch.empty(max(0, free_bytes - left), dtype=torch.uint8, device=bench.device)
    try:
        found = generate(pair, prompts, 0.0, 4)
    finally:
        del filler
        bench.free()
    return {
        "free_bytes": free_bytes,
        "left_bytes": left,
        "equal": found == wanted,
        "ok": found == wanted,
    }


CHECKS: dict[str, Callable[[Bench], Figures]] = {
    "embedded pair": embedded_pair,
    "families": families,
    "rewards": rewards,
    "texts, float32": texts_float32,
    "texts, bfloat16": texts_half,
    "two engines": two_engines,
    "small cache": small_cache,
    "full device": full_device,
}
