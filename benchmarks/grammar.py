"""Measure what a grammar's masks add to a decode step.

    python -m benchmarks.grammar --imdb DIR [--vocab-size 128256] [--rows 8] [--tokens 64]
        [--threads 1] [--repetitions 9] [--dtype float32]

The model is a random Llama of 8 layers of 384, as in `benchmarks.local_engine`. Its byte-level
vocabulary is trained on reviews, so that the masks traverse a real trie of words. The rows draw
candidates of one prefix, as a step of STARS does, with a grammar and without in turns. All grammars
last longer than the candidates, and a random model at temperature 1 writes anything that they
allow. The result is the wall time of a step for all rows together, with masks on all processors:
medians, and the ratio within turns. It needs a quiet machine.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import platform
import random
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.local_engine import LM
from stars_engine import EbnfGrammar, JsonGrammar, RegexGrammar, SamplingParams, TransformersModel
from stars_engine.backends.base import DraftRequest, PrefixHandle
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.config import Grammar

LONG_TEXT = {"type": "string", "minLength": 2_000}
GRAMMARS: dict[str, Grammar] = {
    "JSON, a long string": JsonGrammar(
        json_schema={"type": "object", "properties": {"t": LONG_TEXT}, "required": ["t"]},
        compact=True,
    ),
    "JSON, numbers and names": JsonGrammar(
        json_schema={
            "type": "array",
            "minItems": 400,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"enum": ["alpha", "beta", "gamma", "delta"]},
                    "value": {"type": "number"},
                    "flags": {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
                },
                "required": ["name", "value", "flags"],
            },
        }
    ),
    "regular expression, words": RegexGrammar(pattern=r"([A-Za-z]{1,12}[ ,.]){400}"),
    "EBNF, nested lists": EbnfGrammar(
        text='start: list{200}\nlist: "(" (WORD | list) (" " (WORD | list))* ")"\nWORD: /[a-z]+/'
    ),
}


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imdb", type=Path, required=True, help="folder of the *.jsonl.gz files")
    parser.add_argument("--vocab-size", type=int, default=128_256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each candidate")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backend = random_backend(vocabulary(args.imdb, args.vocab_size), getattr(torch, args.dtype))
    num_weights = sum(weight.numel() for weight in backend.model.parameters())
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, ", end="")
    print(
        f"{platform.processor() or platform.machine()}, {num_weights / 1e6:.0f} M weights, ", end=""
    )
    print(f"vocabulary {backend.vocab_size:,}, {args.rows} rows\n")
    print("| grammar | compiled, ms | step without, ms | step with, ms | added |")
    print("|---|---:|---:|---:|---:|")
    for name, grammar in GRAMMARS.items():
        started = time.perf_counter()
        backend.grammars.start(grammar)
        compiled = time.perf_counter() - started
        pairs = [
            (seconds(backend, None, args, turn), seconds(backend, grammar, args, turn))
            for turn in range(args.repetitions + 1)
        ][1:]
        without, beside = (median(column) for column in zip(*pairs, strict=True))
        added = sorted(100 * (ours / plain - 1) for plain, ours in pairs)
        shown = f"{median(added):.1f} % ({added[0]:.1f} to {added[-1]:.1f})"
        cells = f"{1e3 * compiled:.0f} | {1e3 * without:.1f} | {1e3 * beside:.1f} | {shown}"
        print(f"| {name} | {cells} |", flush=True)


def vocabulary(imdb: Path, size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer trained on reviews, filled up to a size with rare words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(reviews(imdb), 40_000), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def reviews(imdb: Path) -> Any:
    """Yield the texts of training reviews."""
    for path in sorted(imdb.glob("train*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def random_backend(tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> TransformersBackend:
    """Return the random Llama over a tokenizer's vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=8,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **LM,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    return TransformersBackend(TransformersModel(model=model, tokenizer=tokenizer))


def seconds(
    backend: TransformersBackend, grammar: Grammar | None, args: argparse.Namespace, turn: int
) -> float:
    """Return seconds per step of drafting all rows."""
    sampling = SamplingParams(
        temperature=1.0,
        top_k=40,
        grammar=grammar,
        min_tokens=args.tokens,  # all candidates have one length
    )
    rng = random.Random(turn)
    prompt = [rng.randrange(backend.vocab_size) for _ in range(64)]
    handle = PrefixHandle()
    requests = [
        DraftRequest(
            prompt, 64, [rng.random() for _ in range(args.tokens)], sampling, handle=handle
        )
        for _ in range(args.rows)
    ]
    backend.draft([replace(requests[0], uniforms=(0.5,))])  # reads the prompt
    started = time.perf_counter()
    drafts = backend.draft(requests)
    taken = time.perf_counter() - started
    lengths = {len(draft.token_ids) for draft in drafts}  # type: ignore[union-attr]
    assert lengths == {args.tokens}, "all candidates are to be of one length"
    return taken / args.tokens


if __name__ == "__main__":
    main()
