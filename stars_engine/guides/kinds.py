"""The two kinds of guides: a head on frozen hidden states, and a classifier adapted with LoRA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stars_engine.calibration.over_prompts import Floats
from stars_engine.errors import ConfigError, Problem
from stars_engine.guides.lora import RANK, fit_classifier
from stars_engine.guides.samples import JudgedAnswer, ProgressCallback
from stars_engine.guides.selection import Data, choose, described
from stars_engine.guides.states import read_states
from stars_engine.hidden_states.probes import GivesHiddenStates
from stars_engine.hidden_states.value_head import ValueHead, fingerprint_of

_WIDTH = 64


class FittedGuide(NamedTuple):
    """What was fitted, with its values on prompts that it was not fitted to.

    Attributes:
        data: The rows of `values`.
        values: `(rows,)`.
        described: It, in words.
        tried: Within-prompt correlation of each choice.
        num_parameters: Numbers that were fitted.
        reward: The config object that uses it, as code.
        save: Writes it to a folder, with what is to be noted about it.
    """

    data: Data
    values: Floats
    described: str
    tried: dict[str, float]
    num_parameters: int
    reward: str
    save: Callable[[Path, dict[str, Any]], None]


def fit_head(
    model: Any,
    samples: Sequence[JudgedAnswer],
    positions: Sequence[int],
    *,
    seed: int,
    progress: ProgressCallback,
    layers: Sequence[int] | None,
    shape: str,
    soft_value_beta: float | None,
) -> FittedGuide:
    """Fit heads to frozen hidden states, and choose one; see `train_guide`."""
    states = read_states(
        model, samples, _layers(model, layers), positions, seed=seed, progress=progress
    )
    data = Data.of(states, samples, positions, seed)
    candidates, network = choose(
        data,
        widths={"linear": (), "mlp": (_WIDTH,), "auto": (_WIDTH,)}[shape],
        soft_beta=soft_value_beta,
        only_wide=shape == "mlp",
        seed=seed,
        progress=progress,
    )
    best = candidates[0]
    base = fingerprint_of(model, [best.layer])
    pooling: Any = best.pooling

    def save(folder: Path, about: dict[str, Any]) -> None:
        head = ValueHead((best.layer,), pooling, network.weights, network.biases, base, about)
        head.save(folder)

    return FittedGuide(
        data=data,
        values=best.values,
        described=described(best),
        tried={described(item): item.correlation for item in candidates},
        num_parameters=sum(part.numel() for part in (*network.weights, *network.biases)),
        reward="ValueReward(name_or_path=...)",
        save=save,
    )


def fit_lora(
    model: Any,
    samples: Sequence[JudgedAnswer],
    positions: Sequence[int],
    *,
    seed: int,
    progress: ProgressCallback,
    **_: Any,
) -> FittedGuide:
    """Fit a classifier with LoRA, which has no further choices."""
    guide = fit_classifier(model, samples, positions, seed=seed, progress=progress)
    return FittedGuide(
        data=guide.data,
        values=guide.values,
        described=f"classifier, LoRA of rank {RANK}",
        tried={f"after epoch {n}": value for n, value in enumerate(guide.by_epoch, 1)},
        num_parameters=guide.num_parameters,
        reward='ClassifierReward(name_or_path=..., read="ids")',
        save=lambda folder, _: guide.save(folder, model.codec.tokenizer),
    )


def _layers(model: GivesHiddenStates, layers: Sequence[int] | None) -> list[int]:
    last = model.num_layers
    if layers is None:
        return sorted({max(1, round(last * share)) for share in (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)})
    wrong = [layer for layer in layers if not 0 <= layer <= last]
    if wrong or not layers:
        message = (
            f"{list(layers)} is not allowed; allowed: indices from 0 to {last}. Hint: use "
            f"layers=[{last}]"
        )
        raise ConfigError("train_guide", [Problem("layers", message)])
    return list(dict.fromkeys(layers))
