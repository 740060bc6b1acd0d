"""Adapt the language model itself to predict a judge: a classifier, fitted with LoRA.

A head on frozen states cannot learn what the states do not show. A classifier can, but is a second
model at decoding time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from stars_engine.calibration.over_prompts import Floats
from stars_engine.errors import ModelLoadError, needs_extra
from stars_engine.guides.fit import NUM_FOLDS, folds_of
from stars_engine.guides.samples import JudgedAnswer, ProgressCallback
from stars_engine.guides.selection import Data
from stars_engine.guides.states import States
from stars_engine.kv_cache.grouping import split_where

RANK = 16
_RATE, _EPOCHS, _WARMUP = 5e-4, 4, 0.1
_BATCH_TOKENS = 2048


class LoraGuide(NamedTuple):
    """A fitted classifier, with its values on prompts that it was not fitted to.

    Attributes:
        model: The classifier, with the adapter merged into its weights. Its output is in units of
            the score, relative to the mean score.
        data: The rows of `values`, without hidden states.
        values: `(rows,)`, at each position of held-out answers that are longer, and at their ends.
        by_epoch: Within-prompt correlation on the prompts that choose the epoch.
        num_parameters: Numbers that were fitted.
    """

    model: Any
    data: Data
    values: Floats
    by_epoch: list[float]
    num_parameters: int

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write a checkpoint that `ClassifierReward(name_or_path=folder, read="ids")` reads."""
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def fit_classifier(
    model: Any,
    samples: Sequence[JudgedAnswer],
    positions: Sequence[int],
    *,
    seed: int,
    progress: ProgressCallback,
) -> LoraGuide:
    """Fit a classifier with the language model's weights to the scores of samples.

    At every token, the classifier learns the score of the whole answer. Three fifths of the prompts
    are learned from, one chooses the epoch, and one is measured.

    Args:
        model: The language model, of transformers, without an adapter of its own.
        samples: The answers, with scores.
        positions: Lengths, in tokens, at which values are measured.
        seed: Seed of the adapter's weights and of the order of samples.
        progress: Called with "fitting", the batches read, and all batches.

    Raises:
        ModelLoadError: The model is not one of transformers, has an adapter, or has no class of
            sequence classifiers; or the extra `peft` is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = _with_adapter(_classifier_of(model))
    scores = np.array([sample.score for sample in samples], dtype=float)
    center, scale = float(scores.mean()), float(scores.std()) or 1.0
    targets = (scores - center) / scale
    folds = folds_of([sample.prompt_index for sample in samples], NUM_FOLDS, seed)
    measured, choosing, learned = (
        np.flatnonzero(part).tolist() for part in (folds == 0, folds == 1, folds > 1)
    )
    fitted = [each for each in classifier.parameters() if each.requires_grad]
    by_epoch: list[float] = []
    best: list[torch.Tensor] = []
    for _ in _epochs(classifier, fitted, samples, targets, learned, seed=seed, progress=progress):
        states, values = _values(classifier, samples, choosing, positions)
        by_epoch.append(Data.of(states, samples, positions, seed).mean_correlation(values))
        if by_epoch[-1] >= max(by_epoch):
            best = [each.detach().clone() for each in fitted]
    with torch.no_grad():
        for each, value in zip(fitted, best, strict=True):
            each.copy_(value)
    states, values = _values(classifier, samples, measured, positions)
    merged = classifier.merge_and_unload()
    with torch.no_grad():
        merged.score.weight.mul_(scale)
    num_parameters = sum(each.numel() for each in fitted)
    data = Data.of(states, samples, positions, seed)
    return LoraGuide(merged.eval(), data, values * scale + center, by_epoch, num_parameters)


def _classifier_of(model: Any) -> Any:
    """Return a sequence classifier with a copy of the language model's weights, in float32."""
    inner: Any = getattr(model, "model", None)
    if not hasattr(inner, "base_model_prefix") or hasattr(inner, "get_base_model"):
        raise ModelLoadError(
            f"shape='lora' adapts a plain model of transformers, not {type(inner).__name__}. Hint: "
            "use a TransformersModel without adapter_path, or shape='auto'"
        )
    config = copy.deepcopy(inner.config)
    config.num_labels, config.problem_type = 1, "regression"
    tokenizer = model.codec.tokenizer
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
    try:
        auto: Any = AutoModelForSequenceClassification
        classifier = auto.from_config(config, dtype=torch.float32)
        backbone = getattr(classifier, classifier.base_model_prefix)
        backbone.load_state_dict(getattr(inner, inner.base_model_prefix).state_dict())
        classifier.score.weight.data.zero_()
    except (ValueError, AttributeError, RuntimeError) as error:
        raise ModelLoadError(
            f"shape='lora': {type(inner).__name__} cannot become a sequence classifier: {error}. "
            "Hint: use shape='auto'"
        ) from error
    return classifier.to(inner.device)


def _with_adapter(classifier: Any) -> Any:
    with needs_extra("peft"):
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - an extra of its own

    config = LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"
    )
    return get_peft_model(classifier, config)


def _epochs(
    classifier: Any,
    fitted: Sequence[torch.Tensor],
    samples: Sequence[JudgedAnswer],
    targets: Floats,
    learned: Sequence[int],
    *,
    seed: int,
    progress: ProgressCallback,
) -> Iterator[None]:
    """Fit, and yield after each epoch."""
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(fitted, lr=_RATE, weight_decay=0.01)
    batches = _batches(samples, learned)
    total = _EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_RATE, total_steps=total, pct_start=_WARMUP
    )
    num_done = 0
    for _ in range(_EPOCHS):
        classifier.train()
        for place in generator.permutation(len(batches)).tolist():
            progress("fitting", num_done, total)
            batch = batches[place]
            outputs = _outputs(classifier, [samples[index] for index in batch])
            loss: Any = torch.stack(
                [
                    (output - float(targets[index])).square().mean()
                    for index, output in zip(batch, outputs, strict=True)
                ]
            ).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(fitted, 1.0)
            optimizer.step()
            schedule.step()
            num_done += 1
        classifier.eval()
        yield
    progress("fitting", total, total)


def _batches(samples: Sequence[JudgedAnswer], chosen: Sequence[int]) -> list[list[int]]:
    """Divide samples of similar length into batches of about as many tokens."""
    lengths = {index: _length(samples[index]) for index in chosen}
    in_order = sorted(chosen, key=lambda index: lengths[index])
    return list(
        split_where(in_order, lambda batch, i: (len(batch) + 1) * lengths[i] > _BATCH_TOKENS)
    )


def _length(sample: JudgedAnswer) -> int:
    return len(sample.prompt_ids) + len(sample.token_ids)


def _outputs(classifier: Any, batch: Sequence[JudgedAnswer]) -> list[torch.Tensor]:
    """Return `(answer tokens + 1,)` of each sample: after the prompt and after each token."""
    inner = classifier.get_base_model()
    longest = max(map(_length, batch))
    ids = torch.full((len(batch), longest), inner.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(batch):
        length = _length(sample)
        ids[row, :length] = torch.tensor([*sample.prompt_ids, *sample.token_ids])
        mask[row, :length] = 1
    device = inner.score.weight.device
    hidden = inner.base_model(
        input_ids=ids.to(device), attention_mask=mask.to(device)
    ).last_hidden_state
    scores = inner.score(hidden)[:, :, 0]
    return [
        scores[row, len(sample.prompt_ids) - 1 : _length(sample)]
        for row, sample in enumerate(batch)
    ]


@torch.inference_mode()
def _values(
    classifier: Any,
    samples: Sequence[JudgedAnswer],
    chosen: Sequence[int],
    positions: Sequence[int],
) -> tuple[States, Floats]:
    """Return the rows of samples at positions and at their ends, and the values there."""
    rows: list[tuple[int, int, float]] = []
    for batch in _batches(samples, chosen):
        outputs = _outputs(classifier, [samples[index] for index in batch])
        for index, output in zip(batch, outputs, strict=True):
            length = len(samples[index].token_ids)
            sizes = [*(size for size in positions if size < length), length]
            rows += [(index, size, float(output[size])) for size in sizes]
    indices, sizes_of_rows, values = (np.array(column) for column in zip(*rows, strict=True))
    return States(indices, sizes_of_rows, {}), values.astype(float)
