"""Answer a question from documents, guided by a reward model. Runs offline.

The script reads the text files of a folder, splits and embeds them, retrieves chunks for a
question, and streams an answer with its sources. The reward model reads the question and the
answer, not the documents. Run it with `python examples/langchain_rag.py`, or with your own models
and texts:

    python examples/langchain_rag.py --model NAME --reward NAME --target 8 \
        --documents FOLDER --question "What ...?"

A model with a chat template is asked; another one, as the pair in the package, continues a text.
"""

from __future__ import annotations

import argparse
import logging
from operator import itemgetter
from pathlib import Path
from typing import Any

import wordllama
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_qdrant import QdrantVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter

from langchain_stars import StarsLLM

FILMS = Path(__file__).parent / "films"
ASKED = PromptTemplate.from_template(
    "{context}\n\nAnswer from these texts, in one or two sentences: {question}"
)
CONTINUED = PromptTemplate.from_template("{context}\n\n{question} I think that")


class WordEmbeddings(Embeddings):
    """The word vectors of the package `wordllama`."""

    def __init__(self) -> None:
        folder = Path(wordllama.__file__).parent
        self._vectors = wordllama.WordLlama.load(dim=256, cache_dir=folder, disable_download=True)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of texts."""
        return self._vectors.embed(texts, norm=True).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of one text."""
        return self.embed_documents([text])[0]


class LastAnswer(BaseCallbackHandler):
    """Keeps the metadata of the last answer."""

    def on_llm_end(self, response: Any, **_: Any) -> None:
        """Keep the metadata of an answer."""
        self.info = response.generations[0][0].generation_info


def main() -> None:
    """Answer one question."""
    args = arguments()
    logging.getLogger().setLevel(logging.WARNING)  # wordllama lowers it
    store = QdrantVectorStore.from_documents(
        chunks(args.documents), WordEmbeddings(), location=":memory:", collection_name="texts"
    )
    llm = StarsLLM(max_tokens=64, seed=7, **models(args))
    lead = "" if llm.engine().has_chat_template else " I think that"
    chain = RunnablePassthrough.assign(
        documents=itemgetter("question") | store.as_retriever(search_kwargs={"k": 2})
    ) | RunnablePassthrough.assign(answer=answerer(llm, lead))

    last = LastAnswer()
    documents: list[Document] = []
    print(args.question + lead, end="" if lead else "\n", flush=True)
    for piece in chain.stream({"question": args.question}, config={"callbacks": [last]}):
        documents += piece.get("documents", [])
        print(piece.get("answer", ""), end="", flush=True)
    print("\n\nsources:", *sorted({document.metadata["source"] for document in documents}))
    print("reward:", round(last.info["reward"], 2), "usage:", last.info["usage"])
    llm.close()


def chunks(folder: Path) -> list[Document]:
    """Return the texts of a folder in chunks, each with the name of its file."""
    texts = [
        Document(path.read_text(encoding="utf-8"), metadata={"source": path.name})
        for path in sorted(folder.glob("*.txt"))
    ]
    return RecursiveCharacterTextSplitter(chunk_size=250, chunk_overlap=0).split_documents(texts)


def answerer(llm: StarsLLM, lead: str) -> Any:
    """Return a function that answers a question from documents; an answer continues `lead`."""

    def answer(given: dict[str, Any]) -> Runnable[Any, str]:
        context = "\n\n".join(document.page_content for document in given["documents"])
        prompt = (CONTINUED if lead else ASKED).partial(context=context)
        # The reward model reads the question instead of the whole prompt.
        return prompt | llm.bind(reward_prompt=given["question"] + lead)

    return answer


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
