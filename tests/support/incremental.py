"""Incremental reward models compared with plain passes over whole texts."""

from __future__ import annotations

import torch

from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.rewards.encoding import EncodedInput
from stars_engine.rewards.guard import GuardRewardModel
from stars_engine.rewards.incremental import IncrementalRunner
from stars_engine.rewards.process import ProcessRewardModel
from stars_engine.rewards.yes_no import YesNoRewardModel

Ids = list[int]
Reward = ClassifierRewardModel | GuardRewardModel | ProcessRewardModel | YesNoRewardModel


def reader_of(reward: Reward) -> IncrementalRunner:
    assert reward._incremental is not None, reward.path
    return reward._incremental


def check(reward: Reward, rows: list[Ids] | list[EncodedInput]) -> None:
    """Each row as one plain pass over it, alone."""
    marked = [row if isinstance(row, EncodedInput) else EncodedInput(row) for row in rows]
    with torch.inference_mode():
        ours = reader_of(reward).run(marked)
        plain = [reward._run_whole([row])[0] for row in marked]
    assert [len(output) for output in ours] == [len(row.points) for row in marked]
    torch.testing.assert_close(torch.cat(ours), torch.cat(plain), atol=1e-5, rtol=1e-4)
