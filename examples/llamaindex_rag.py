"""Answer questions from an index, guided by a reward model. Runs offline.

The script reads a folder, embeds its texts, streams an answer with its sources, and then answers
several questions at once from an event loop. Run it with `python examples/llamaindex_rag.py`, or
with your own models and texts:

    python examples/llamaindex_rag.py --model NAME --reward NAME --target 8 \
        --documents FOLDER --question "What ...?"

A model with a chat template is asked; another one, as the pair in the package, continues a text.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path
from typing import Any

import wordllama
from llama_index.core import PromptTemplate, Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter

from llamaindex_stars import StarsLLM

FILMS = Path(__file__).parent / "films"
ASKED = PromptTemplate(
    "{context_str}\n\nAnswer from these texts, in one or two sentences: {query_str}"
)
CONTINUED = PromptTemplate("{context_str}\n\n{query_str} I think that")


class WordEmbeddings(BaseEmbedding):
    """The word vectors of the package `wordllama`."""

    def __init__(self) -> None:
        super().__init__()
        folder = Path(wordllama.__file__).parent
        self._vectors = wordllama.WordLlama.load(dim=256, cache_dir=folder, disable_download=True)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vectors.embed([text], norm=True)[0].tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, query)


def main() -> None:
    """Answer one question as a stream, then three at once."""
    args = arguments()
    logging.getLogger().setLevel(logging.ERROR)  # wordllama lowers it
    llm = StarsLLM(max_tokens=64, seed=7, **models(args))
    lead = "" if llm.engine().has_chat_template else " I think that"
    Settings.tokenizer = llm.tokenizer_fn  # prompts are filled by the model's own token count
    index = VectorStoreIndex.from_documents(
        SimpleDirectoryReader(args.documents, required_exts=[".txt"]).load_data(),
        embed_model=WordEmbeddings(),
        transformations=[SentenceSplitter(chunk_size=100, chunk_overlap=0)],
    )
    fields = {"llm": llm, "similarity_top_k": 2}
    fields["text_qa_template"] = CONTINUED if lead else ASKED
    fields["response_mode"] = "simple_summarize"  # the small model's context has no room to refine

    streaming = index.as_query_engine(streaming=True, **fields)
    response: Any = streaming.query(args.question)
    print(args.question + lead, end="" if lead else "\n", flush=True)
    for accepted in response.response_gen:
        print(accepted, end="", flush=True)
    print("\n\nsources:", *sorted({node.metadata["file_name"] for node in response.source_nodes}))

    engine = index.as_query_engine(**fields)
    films = ("Harbour Lights", "The Long Winter", "Paper Moonlight")

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*(engine.aquery(f"How was {film}?") for film in films))

    for film, answer in zip(films, asyncio.run(ask_all()), strict=True):
        print(f"{film}:{lead}{answer}" if lead else f"{film}: {answer}")
    raw = llm.complete("The acting in Harbour Lights").raw
    print("reward:", round(raw["reward"], 2), "usage:", raw["usage"])
    llm.close()


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=Path, default=FILMS, help="a folder of *.txt")
    parser.add_argument("--question", default="How was the acting in Harbour Lights?")
    parser.add_argument("--model", help="a language model: hub name or directory")
    parser.add_argument("--reward", help="a reward model: hub name or directory")
    parser.add_argument("--target", type=float, help="the reward at the end of the ramp")
    given = parser.parse_args()
    if len({given.model is None, given.reward is None, given.target is None}) > 1:
        parser.error("--model, --reward and --target must be used together")
    if not any(given.documents.glob("*.txt")):
        parser.error(f"--documents {given.documents} contains no *.txt file")
    return given


def models(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the adapter; without `--model`, those of the embedded pair."""
    if args.model is None:
        return {}
    schedule = {"kind": "linear", "target": args.target}
    return {"model": args.model, "reward": args.reward, "schedule": schedule}


if __name__ == "__main__":
    main()
