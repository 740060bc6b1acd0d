"""Prompts for short reviews: no subject is in two groups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training import review_prompts
from training.review_prompts import TUNING_SUBJECTS, split


def test_groups_have_no_subject_in_common(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    review_prompts.main(["--out", str(tmp_path / "prompts")])
    guide, evaluation = split()
    written = (tmp_path / "prompts" / "evaluation.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in written] == evaluation
    assert f"guide.jsonl: {len(guide)} prompts" in capsys.readouterr().out

    num_tuning = TUNING_SUBJECTS * len(review_prompts._WORDINGS)
    groups = [guide, evaluation[:num_tuning], evaluation[num_tuning:]]
    found = [
        {subject for subject in review_prompts._SUBJECTS for prompt in group if subject in prompt}
        for group in groups
    ]
    assert [len(subjects) for subjects in found][:2] == [len(guide) // 5, TUNING_SUBJECTS]
    assert not found[0] & found[1]
    assert not found[2] & (found[0] | found[1])
    assert len(set(guide + evaluation)) == len(guide) + len(evaluation)
