"""Evaluate a served model with inspect_ai, which speaks OpenAI's API.

    pip install inspect-ai
    stars serve &
    python examples/serve_evaluation.py

The embedded pair writes film reviews, so the prompts begin reviews. The score is the reward itself,
which `/v1/score` returns; a judge that is independent of the reward would be another scorer.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import httpx

PROMPTS = ("This movie", "The plot", "I watched this with my family and", "The acting was")


def main() -> None:
    """Run the evaluation and print its mean reward."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--max-tokens", type=int, default=48)
    options = parser.parse_args()

    from inspect_ai import Task, eval  # noqa: A004 - its own name
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.scorer import Score, mean, scorer
    from inspect_ai.solver import generate

    @scorer(metrics=[mean()])
    def reward():  # type: ignore[no-untyped-def]
        async def score(state, target):  # type: ignore[no-untyped-def]
            body = {"model": options.model, "prompt": state.input_text}
            async with httpx.AsyncClient(base_url=options.url, timeout=60) as client:
                answer = await client.post(
                    "/v1/score", json={**body, "input": state.output.completion}
                )
            found = answer.raise_for_status().json()["data"][0]
            return Score(value=found["reward"], answer=state.output.completion)

        return score

    task = Task(
        dataset=[Sample(input=prompt) for prompt in PROMPTS],
        solver=generate(),
        scorer=reward(),
        config=GenerateConfig(max_tokens=options.max_tokens, seed=1),
    )
    os.environ.setdefault("OPENAI_API_KEY", "none")
    model = get_model(f"openai/{options.model}", base_url=f"{options.url}/v1", responses_api=False)
    with tempfile.TemporaryDirectory() as folder:
        [log] = eval(task, model=model, log_dir=folder, display="none")
    assert log.status == "success", log.error
    assert log.results is not None
    print(f"mean reward {log.results.scores[0].metrics['mean'].value:.3f}")


if __name__ == "__main__":
    main()
