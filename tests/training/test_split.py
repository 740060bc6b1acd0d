"""Splits of the guide, the judge and the evaluation: disjoint, stable, without copies."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.shared_files import shared_data
from training.duplicates import copies, exact_copies, normalised, repeated
from training.pieces import beginning, with_excerpts
from training.split import labelled_rows, numbers, openings

WORDS = [f"w{index}" for index in range(400)]


def review(rng: np.random.Generator, length: int = 80) -> str:
    return " ".join(rng.choice(WORDS, length))


def write_imdb(directory: Path, rows: dict[str, list[str]], *, first: tuple[str, ...] = ()) -> Path:
    directory.mkdir()
    for name, texts in rows.items():
        with gzip.open(directory / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            for text in (*first, *texts) if name == "train_pos" else texts:
                file.write(json.dumps({"text": text}) + "\n")
    return directory


@pytest.fixture(scope="module")
def rows() -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    names = ("train_pos", "train_neg", "train_unsup", "dev_pos", "dev_neg")
    return {name: [review(rng) for _ in range(120)] for name in names}


@pytest.fixture(scope="module")
def imdb(rows: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Independent reviews, but for one copy of each kind that must be found."""
    rows = {name: list(texts) for name, texts in rows.items()}
    rows["dev_pos"][0] = rows["train_pos"][0].upper() + "!"
    rows["dev_pos"][1] = " ".join(rows["train_unsup"][1].split()[10:60])  # an excerpt
    rows["dev_neg"][0] = rows["dev_neg"][1] + " and so on"
    judged = [text for text in rows["train_neg"] if text not in set(guide_texts(rows))]
    rows["train_neg"][2] = judged[0] + " said twice"
    return write_imdb(tmp_path_factory.mktemp("imdb") / "imdb", rows)


def guide_texts(rows: dict[str, list[str]]) -> list[str]:
    from training.split import GUIDE_SHARE, _chance

    texts = rows["train_pos"] + rows["train_neg"]
    return [text for text in texts if _chance(text, "part") < GUIDE_SHARE]


def test_copies_differ_from_stock_phrases() -> None:
    rng = np.random.default_rng(1)
    first, second, third = (review(rng) for _ in range(3))
    stock = " ".join(WORDS[:10])
    texts = [
        first.title().replace(" ", ", "),  # exact but for case and marks
        " ".join(second.split()[:30]),  # excerpt
        f"{third} {stock}",  # shares a stock phrase, three runs of words
        review(rng),
    ]
    others = [first, second, f"{stock} {review(rng)}", "w1 w2"]
    assert copies(texts, others).tolist() == [True, True, False, False]
    assert exact_copies(texts, others).tolist() == [True, False, False, False]
    assert repeated([first, second, first + " w1", "w1", "W1!"]).tolist() == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_copies_agree_with_a_comparison_of_all_pairs() -> None:
    rng = np.random.default_rng(2)
    texts = [review(rng, 40) for _ in range(30)]
    others = [review(rng, 40) for _ in range(30)]
    for index in range(30):
        begin = int(rng.integers(0, 40))
        words = others[index].split()
        words[begin:] = texts[index].split()[begin:]
        others[index] = " ".join(words)

    def runs(text: str) -> set[str]:
        words = text.split()
        return {" ".join(words[i : i + 8]) for i in range(len(words) - 7)}

    expected = [
        any(
            len(runs(text) & runs(other)) >= max(10, 0.2 * min(len(runs(text)), len(runs(other))))
            for other in others
        )
        for text in texts
    ]
    assert 5 < sum(expected) < 30
    assert copies(texts, others).tolist() == expected


def test_no_text_or_copy_is_in_two_parts(imdb: Path) -> None:
    guide, judge, dev = (labelled_rows(imdb, part)[0] for part in ("guide", "judge", "dev"))
    training = guide + judge
    assert not set(guide) & set(judge)
    assert not copies(judge, guide).any()
    assert not copies(dev, training).any()
    assert not repeated(dev).any()
    assert numbers(imdb)["dev_left_out"] == {
        "exact_copies_of_training": 1,
        "near_copies_of_training": 1,
        "copies_of_dev": 1,
    }
    assert numbers(imdb)["judge_left_out"]["copies_of_guide"] in (0, 1)


def test_labels_go_with_texts(rows: dict[str, list[str]], imdb: Path) -> None:
    texts, labels = labelled_rows(imdb, "dev")
    positive = {text for text, label in zip(texts, labels, strict=True) if label}
    assert positive < set(rows["dev_pos"])
    negative = [text.removesuffix(" and so on") for text in set(texts) - positive]
    assert set(negative) <= set(rows["dev_neg"])
    assert 0 < sum(labels[:40]) < 40  # mixed


def test_other_reviews_do_not_move_rows(rows: dict[str, list[str]], tmp_path: Path) -> None:
    plain = write_imdb(tmp_path / "plain", rows)
    more = write_imdb(tmp_path / "more", rows, first=("A review that was not there before.",))
    for part in ("guide", "judge", "dev"):
        before, after = labelled_rows(plain, part)[0], labelled_rows(more, part)[0]
        assert [text for text in after if text in set(before)] == before
    assert openings(plain, "report", 20) == openings(more, "report", 20)


def test_openings_of_the_halves_differ(imdb: Path) -> None:
    select, report = openings(imdb, "select", 60), openings(imdb, "report", 60)
    pilot = openings(imdb, "pilot", 60)
    everything = [normalised(text) for text in (*select, *report, *pilot)]
    assert len(set(everything)) == 180
    assert openings(imdb, "select", 7) == select[:7]
    assert {len(text.split()) for text in select} == {12}
    assert {len(text.split()) for text in openings(imdb, "select", 4, words=3)} == {3}
    guide = {" ".join(text.split()[:12]) for text in labelled_rows(imdb, "guide")[0]}
    assert set(pilot) < guide


def test_missing_data_is_refused(imdb: Path) -> None:
    with pytest.raises(ValueError, match="num=100000 is not allowed"):
        openings(imdb, "report", 100_000)
    with pytest.raises(ValueError, match="half='test' is not allowed"):
        openings(imdb, "test", 3)
    with pytest.raises(ValueError, match="part='test' is not allowed"):
        labelled_rows(imdb, "test")


@pytest.mark.slow
def test_real_reviews_split_as_described() -> None:
    guide, labels = labelled_rows(shared_data("imdb"), "guide")
    assert 19_500 < len(guide) < 20_500
    assert 0.48 < np.mean(labels) < 0.52


def test_beginnings_keep_spaces_and_lines() -> None:
    assert beginning(" one two\nthree  four", 3) == " one two\nthree"
    assert beginning("one two", 3) == beginning("one two", None) == "one two"


def test_excerpts_are_from_their_text() -> None:
    rng = np.random.default_rng(3)
    texts = [review(rng, length) for length in (5, 20, 50)]
    pieces, labels = with_excerpts(texts, [0, 1, 0], (10, 30), seed=0)
    assert pieces[:3] == texts
    assert labels == [0, 1, 0, 1, 0, 0]
    assert [len(piece.split()) for piece in pieces[3:]] == [10, 10, 30]
    sources = [texts[1], texts[2], texts[2]]
    assert all(piece in text for piece, text in zip(pieces[3:], sources, strict=True))
    assert with_excerpts(texts, [0, 1, 0], (10, 30), seed=0)[0] == pieces
    assert with_excerpts(texts, [0, 1, 0], (10, 30), seed=1)[0] != pieces
