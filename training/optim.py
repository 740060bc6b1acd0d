"""The optimiser and the learning-rate schedule of all training runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_WARMUP = 50  # steps until the peak rate
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalised (Jordan et al. 2024), in float32.

    `torch.optim.Muon` orthogonalises in bfloat16, which CPUs without units for it emulate: that
    alone took as long as the rest of a training step. Matrices of one shape go through together.

    Args:
        params: Matrices.
        lr: Learning rate; updates are scaled to the root mean square of AdamW's, so that one rate
            serves both (Liu et al. 2025).
        momentum: Nesterov momentum.
        weight_decay: Decoupled from the gradient.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                momenta = [self._momentum(parameter, group["momentum"]) for parameter in parameters]
                updates = orthogonalised(torch.stack(momenta))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update, alpha=rate)

    def _momentum(self, parameter: nn.Parameter, decay: float) -> torch.Tensor:
        state = self.state[parameter]
        gradient = parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - decay)
        return gradient.lerp(state["momentum"], decay)


def orthogonalised(matrices: torch.Tensor, num_steps: int = 5) -> torch.Tensor:
    """Bring all singular values of each matrix near 1: `(num_matrices, rows, columns)`.

    Newton-Schulz iteration with the quintic of Jordan et al. 2024: values land in about [0.7, 1.2].
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(num_steps):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrices.shape[1] <= matrices.shape[2] else wide.mT


class HybridOptimizer:
    """Muon for the hidden matrices, AdamW for everything else, one rate: warm-up, then linear to 0.

    Args:
        model: Its matrices inside `layers` go to Muon.
        lr: Peak learning rate.
        num_steps: Steps until the rate is 0.
    """

    def __init__(self, model: nn.Module, *, lr: float, num_steps: int) -> None:
        hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name]
        chosen = {id(p) for p in hidden}
        others = [p for p in model.parameters() if id(p) not in chosen]
        self._optimizers: list[torch.optim.Optimizer] = [
            Muon(hidden, lr=lr),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self._parameters = [*hidden, *others]
        self._peak_lr, self._num_steps = lr, num_steps
        self.num_done = 0

    def step(self) -> None:
        """Clip the gradients, apply them at the schedule's rate, and clear them."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        rise = (self.num_done + 1) / _WARMUP
        fall = (self._num_steps - self.num_done) / max(1, self._num_steps - _WARMUP)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._peak_lr * min(rise, fall, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.num_done += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`."""
        states = [optimizer.state_dict() for optimizer in self._optimizers]
        return {"num_done": self.num_done, "optimizers": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved state."""
        self.num_done = state["num_done"]
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
