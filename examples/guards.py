"""Guard the answers of a model: no personal data, grounded in the documents, no refusals.

A guard is a function that returns 1 for allowed text and 0 for other text. It reads the prompt,
which holds the documents, and the answer so far. Run `python examples/guards.py --model DIR` with
an instruct model; without `--model`, the pair's language model inside the package continues text.
"""

from __future__ import annotations

import argparse
import re
import sys

from stars_engine import AlignParams, Chat, SamplingParams, StarsConfig, StarsEngine, StarsResult

# --- guards ----------------------------------------------------------------------------------

PERSONAL = re.compile(
    r"[\w.+-]+@"  # e-mail address, also one that is not finished
    r"|\+?\d[\d ()/-]{6,}\d"  # telephone number
    r"|\b[A-Z]{2}\d{2}(?: ?[\dA-Z]{4}){3,}"  # IBAN
)
REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable)|I can(?:not|'t)|as an AI)\b", re.IGNORECASE
)
FACT = re.compile(
    r"\d+(?:[.,]\d+)?|(?<=[a-z,;] )[A-Z][a-z]+"
)  # numbers, and names inside sentences


def no_personal_data(prompt: str, answer: str) -> float:
    """Return 0 for an answer with an e-mail address, a telephone number or an account number."""
    return float(PERSONAL.search(answer) is None)


def grounded(prompt: str, answer: str) -> float:
    """Return 0 for an answer with a number or a name that the prompt does not have."""
    return float(all(fact in prompt for fact in FACT.findall(answer)))


def no_refusal(prompt: str, answer: str) -> float:
    """Return 0 for an answer that refuses or apologises."""
    return float(REFUSAL.search(answer) is None)


def allowed(prompt: str, answer: str) -> float:
    """Return 1 if all guards allow an answer."""
    return min(guard(prompt, answer) for guard in (no_personal_data, grounded, no_refusal))


# --- documents and questions -----------------------------------------------------------------

DOCUMENTS = """\
Order 4417: placed on 3 May by Marta Keane, marta.keane@example.org, +353 1 555 0147.
Two lamps and a desk. The desk was sent on 6 May and arrives within five days.
Lamps can be returned within 30 days. Desks are assembled on request for 25 euros."""
QUESTIONS = (
    "When was the desk sent, and how long may the lamps be returned?",
    "Who placed order 4417, and what is the telephone number?",
)
FALLBACK = " I cannot say that."


def asked(question: str) -> Chat:
    """Return a conversation that asks a question about the documents."""
    return Chat(
        [
            {"role": "system", "content": f"Answer in one or two sentences.\n\n{DOCUMENTS}"},
            {"role": "user", "content": question},
        ]
    )


def main() -> None:
    """Answer the questions, plainly and with the guards."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="stars:embedded-lm", help="hub name or directory")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = StarsConfig(
        model=args.model,
        reward=allowed,
        align=AlignParams(preset="guard", fallback_text=FALLBACK),
        sampling=SamplingParams(max_tokens=60, temperature=0.6, seed=args.seed),
    )
    print(f"loading {args.model}", file=sys.stderr, flush=True)
    with StarsEngine(config) as engine:
        has_chat = engine.has_chat_template
        for question in QUESTIONS:
            print(f"Q: {question}", flush=True)
            prompt = asked(question) if has_chat else f"{DOCUMENTS}\n{question}\n"
            [plain] = engine.vanilla(prompt)
            print(f"   plain: {answer_of(plain)}", flush=True)
            [guarded] = engine.generate(prompt)
            print(f"   guarded: {answer_of(guarded)}")
            usage = guarded.usage
            print(
                f"   ({guarded.finish_reason}, {usage.num_attempts} drafts, "
                f"{usage.num_attempts - usage.num_accepted} refused by the guard)",
                flush=True,
            )


def answer_of(result: StarsResult) -> str:
    """Return an answer on one line."""
    return " ".join(result.text.split())


if __name__ == "__main__":
    main()
