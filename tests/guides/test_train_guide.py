"""Fitting value heads: figures on states whose truth is known, and on the embedded pair."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stars_engine import (
    AlignParams,
    Alternative,
    ConfigError,
    ModelLoadError,
    NoSchedule,
    RewardError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    ValueReward,
    train_guide,
)
from stars_engine.guides.fit import centred, folds_of, mlp
from stars_engine.guides.samples import (
    JudgedAnswer,
    append_samples,
    labelled_answers,
    read_samples,
)
from stars_engine.guides.selection import Data, choose
from stars_engine.guides.states import States
from stars_engine.guides.statistics import within_correlation
from stars_engine.hidden_states.value_head import ValueHead

PROMPTS = [
    f"{start} {word}" for start in ("This", "The") for word in ["film", "plot", "cast", "end"]
]
SAMPLING = SamplingParams(max_tokens=20)


def length(prompt: str, answer: str) -> float:
    return float(len(answer))


def planted(noise: float, seed: int = 0) -> Data:
    """40 prompts of 10 answers; the second layer's mean gives the score, with noise."""
    generator = np.random.default_rng(seed)
    num_rows = 40 * 10 * 2
    prompts = np.repeat(np.arange(40), 20)
    quality = np.repeat(generator.normal(size=400), 2)
    scores = quality + 3 * generator.normal(size=40)[prompts]
    given = torch.as_tensor(generator.normal(size=(num_rows, 12)), dtype=torch.float32)
    seen = quality + noise * generator.normal(size=num_rows)
    given[:, 3] = torch.as_tensor(seen, dtype=torch.float32)
    other = torch.as_tensor(generator.normal(size=(num_rows, 12)), dtype=torch.float32)
    by_layer = {(1, "mean"): other, (2, "last"): other + 0.1 * given, (2, "mean"): given}
    states = States(np.repeat(np.arange(400), 2), np.tile([8, 16], 400), by_layer)
    return Data(states, scores, prompts, folds_of(prompts.tolist(), 5, 0), (8, 16))


def test_the_layer_that_tells_is_found() -> None:
    """With noise as strong as the signal, no head can exceed sqrt(1/2)."""
    data = planted(noise=1.0)
    candidates, network = choose(data, widths=(), soft_beta=None, seed=0, progress=lambda *_: None)
    best = candidates[0]
    assert (best.layer, best.pooling, best.hidden) == (2, "mean", 0)
    assert best.correlation == pytest.approx(0.5**0.5, abs=0.06)
    assert candidates[-1].correlation < 0.3
    values = network(data.states.by_layer[2, "mean"])
    assert within_correlation(values, data.scores, data.prompts) > 0.6


def test_pure_noise_has_no_correlation_on_other_prompts() -> None:
    data = planted(noise=1e6)
    candidates, _ = choose(data, widths=(8,), soft_beta=None, seed=0, progress=lambda *_: None)
    assert all(abs(item.correlation) < 0.2 for item in candidates)


def test_folds_keep_prompts_together() -> None:
    prompts = [3, 1, 3, 2, 1, 7, 9]
    folds = folds_of(prompts, 3, 0)
    assert len({(p, f) for p, f in zip(prompts, folds.tolist(), strict=True)}) == 5
    assert set(folds.tolist()) == {0, 1, 2}


def test_correlations_are_within_prompts() -> None:
    prompts = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([1.0, 2, 3, 11, 12, 13])
    assert within_correlation(-scores, scores, prompts) == pytest.approx(-1)
    between = np.array([0.0, 0, 0, 9, 9, 9])
    assert np.isnan(within_correlation(between, scores, prompts))
    assert centred(torch.as_tensor(scores), prompts).tolist() == [-1, 0, 1, -1, 0, 1]


def test_the_soft_value_lies_above_the_mean() -> None:
    """Of scores 0 and 1, equally likely: beta * log((1 + exp(1 / beta)) / 2)."""
    rows, beta = torch.ones(4000, 2), 0.5
    rows += 0.01 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    scores = np.tile([0.0, 1.0], 2000)
    network = mlp(rows, scores, np.zeros(4000, dtype=np.int64), hidden=0, seed=0, soft_beta=beta)
    expected = beta * np.log((1 + np.exp(1 / beta)) / 2)
    assert float(network(rows).mean()) == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_a_head_is_fitted_written_used_and_resumed(engine: StarsEngine, tmp_path: Path) -> None:
    kwargs = {"judge": length, "num_answers": 5, "sampling": SAMPLING, "shape": "linear"}
    report = train_guide(engine, tmp_path, PROMPTS, **kwargs)
    assert (report.num_prompts, report.num_samples) == (8, 40)
    assert [p.num_tokens for p in report.positions] == [8, 16]
    assert all(-1 <= p.correlation.value <= 1 for p in report.positions)
    assert "within-prompt correlation" in report.summary()
    assert "# Guide: linear" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["head"] == report.head
    samples = (tmp_path / "samples.jsonl").read_bytes()
    lines = samples.splitlines(keepends=True)
    # Interrupted while a line was written: its prompt is sampled again, to the same answers.
    (tmp_path / "samples.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    again = train_guide(engine, tmp_path, PROMPTS, **kwargs)
    drop = {"seconds"}
    assert again.model_dump(exclude=drop) == report.model_dump(exclude=drop)
    with pytest.raises(ConfigError, match=r"holds samples of another model.*Hint"):
        train_guide(engine, tmp_path, PROMPTS[::-1], **kwargs)
    steered = engine.config.replace(
        align=AlignParams(alternatives=[Alternative(opening=" I liked", share=0.5)])
    )
    with (
        StarsEngine(steered, model=engine.model, reward=engine.reward) as other,
        pytest.raises(ConfigError, match=r"other alternatives or another sampling.*Hint"),
    ):
        train_guide(other, tmp_path, PROMPTS, **kwargs)
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=ValueReward(name_or_path=str(tmp_path)),
        align={"schedule": NoSchedule(), "segment_len": 5},
    )
    with StarsEngine(config) as guided:
        [result] = guided.generate("This film", sampling=SAMPLING.replace(seed=1))
    head = ValueHead.load(tmp_path)
    ids = engine.model.codec.encode_prompt("This film")
    [states] = engine.model.read_states([[*ids, *result.token_ids]], head.layers)
    expected = head.value(head.new_probe()(states[len(ids) - 1 :]).numpy())
    assert result.reward == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_labelled_answers_need_no_sampling(engine: StarsEngine, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    rows = [
        {"prompt": prompt, "answer": f" was {word} and {word}", "score": score}
        for prompt in PROMPTS
        for word, score in (("good", 1.0), ("bad", -1.0), ("great", 1.5), ("awful", -1.5))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = train_guide(engine, tmp_path / "out", answers=file, sampling=SAMPLING)
    assert (report.num_prompts, report.num_samples) == (8, 32)
    assert not (tmp_path / "out" / "samples.jsonl").exists()
    file.write_text('{"prompt": "x", "answer": "y"}\n')
    with pytest.raises(ConfigError, match=r"line 1: not a labelled answer.*Hint"):
        train_guide(engine, tmp_path / "out", answers=file, sampling=SAMPLING)


def test_bad_arguments(engine: StarsEngine, tmp_path: Path) -> None:
    for field, value in (("num_answers", 1), ("shape", "deep"), ("soft_value_beta", -1.0)):
        with pytest.raises(ConfigError, match=f"{field}"):
            train_guide(engine, tmp_path, PROMPTS, judge=length, **{field: value})
    small = {"num_answers": 2, "sampling": SAMPLING.replace(max_tokens=4)}
    with pytest.raises(ConfigError, match=r"scores differ among .* only 0 of 8"):
        train_guide(engine, tmp_path / "a", PROMPTS, judge=lambda p, a: 1.0, **small)
    with pytest.raises(RewardError, match=r"the judge failed.*Hint"):
        train_guide(engine, tmp_path / "b", PROMPTS, judge=lambda p, a: 1 / 0, **small)
    with pytest.raises(ConfigError, match=r"layers.*indices from 0 to"):
        train_guide(engine, tmp_path / "c", PROMPTS, judge=length, layers=[99], **small)


def sample(prompt_index: int, text: str) -> JudgedAnswer:
    return JudgedAnswer(prompt_index, (1,), (2, 3), "a prompt", text, partial={4: 0.5})


# Characters at which `str.splitlines` would split a line.
WHOLE = [sample(0, "a\u2028b\x85"), sample(0, "c\x0b"), sample(1, "ü"), sample(1, "\x1c")]


@pytest.mark.parametrize("cut", [1, 2, 60, 200, 260])
def test_a_torn_file_of_samples_loses_only_unfinished_prompts(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "samples.jsonl"
    assert read_samples(path, 2) == []
    append_samples(path, WHOLE)
    assert read_samples(path, 2) == WHOLE
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - cut])
    assert read_samples(path, 2) == WHOLE[:2]
    append_samples(path, WHOLE[2:])  # which are sampled again
    assert path.read_bytes() == data


def test_a_line_that_is_no_sample_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    append_samples(path, WHOLE[:1])
    for line in (b"{}", b"[1]", b"\xff", b"null", b"{"):
        path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n" + line + b"\n")
        with pytest.raises(ConfigError, match=r"line 2 is not a sample: .* Hint: remove the line"):
            read_samples(path, 1)


def test_labelled_answers_that_cannot_be_read_are_named(
    engine: StarsEngine, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(ConfigError, match="No such file"):
        labelled_answers(engine, path, SAMPLING)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        labelled_answers(engine, path, SAMPLING)
    row = {"prompt": "a", "answer": "b\u2028c", "score": 1.5}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n\n")
    [found] = labelled_answers(engine, path, SAMPLING)
    assert (found.text, found.score) == ("b\u2028c", 1.5)


def test_a_model_without_hidden_states_is_refused(tmp_path: Path) -> None:
    class Host:
        model = object()

    with pytest.raises(ModelLoadError, match=r"object gives none.*Hint"):
        train_guide(Host(), tmp_path, PROMPTS)
