"""The exact law through a server: chi-square of sampled texts against the closed form."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from scipy import stats
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stars_engine import (
    AlignParams,
    EngineParams,
    OpenAIServerModel,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TokenIds,
)
from stars_engine.testing import TableReward, TabularModel
from tests.support.closed_form import END, PIECES, Case, closed_form, next_probs
from tests.support.model_servers import TestServer
from tests.support.server_faults import Served
from tests.support.serving import serving

NUM_SAMPLES = int(os.environ.get("STARS_LAW_SAMPLES", "1500"))
PROMPT = 0  # one token: the server's table begins after it


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose tokens are the pieces of the table."""
    names = {piece or "</s>": token for token, piece in enumerate(PIECES)}
    backend = Tokenizer(models.WordLevel(names, unk_token=PIECES[0]))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    folder = tmp_path_factory.mktemp("tokenizer")
    end = next(name for name, token in names.items() if token == END)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    model = TabularModel(PIECES, next_probs, end_id=END)
    with serving(Served(model, prompt_len=1, max_model_len=16)) as running:
        yield running


@pytest.mark.slow
def test_texts_have_the_law_of_the_closed_form(server: TestServer, tokenizer: Path) -> None:
    case = Case((0.4, 0.6), 0.5, 2, "best", 2, max_tokens=2)
    config = StarsConfig(
        model=OpenAIServerModel(base_url=server.url, tokenizer_name_or_path=str(tokenizer)),
        align=AlignParams(
            schedule=case.schedule(),
            beta=case.beta,
            segment_len=case.segment_len,
            max_attempts=case.max_attempts,
            on_exhausted="best",
            num_candidates=case.num_candidates,
        ),
        reward="a/b",
        engine=EngineParams(max_active=64, max_n=NUM_SAMPLES),
    )
    sampling = SamplingParams(
        max_tokens=2, temperature=1.0, top_k=None, stop=(case.stop,), n=NUM_SAMPLES, seed=1
    )
    reward = TableReward(dict(case.rewards), default=0.0)
    with StarsEngine(config, reward=reward) as engine:
        results = engine.generate(TokenIds([PROMPT]), sampling=sampling)
    found = Counter((result.text, result.finish_reason) for result in results)
    law = closed_form(case)
    assert found.keys() <= law.keys()
    likely = [outcome for outcome, prob in law.items() if prob * NUM_SAMPLES >= 5]
    rest = NUM_SAMPLES - sum(found[outcome] for outcome in likely)
    rest_prob = 1 - sum(law[outcome] for outcome in likely)
    observed = [found[outcome] for outcome in likely]
    expected = [law[outcome] * NUM_SAMPLES for outcome in likely]
    if rest_prob > 1e-9:
        observed.append(rest)
        expected.append(rest_prob * NUM_SAMPLES)
    assert stats.chisquare(observed, expected).pvalue > 1e-3, json.dumps([observed, expected])
    other = closed_form(Case((0.4, 0.6), 0.5, 1, "best", 1, max_tokens=2))  # the test has teeth
    wrong = [other.get(outcome, 1e-9) * NUM_SAMPLES for outcome in likely]
    wrong = [value * sum(observed[: len(likely)]) / sum(wrong) for value in wrong]
    assert stats.chisquare(observed[: len(likely)], wrong).pvalue < 1e-6
