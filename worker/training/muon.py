"""Muon: momentum whose update is orthogonalised, for matrices and convolution kernels; AdamW for everything else.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", with the update scaled to the
size of an AdamW update (Liu et al. 2025, arXiv 2502.16982) so that one learning rate serves both. `torch.optim.Muon`
takes two-dimensional parameters only; here a kernel (out, in, ...) counts as the matrix (out, in * ...), and parameters
of one shape are orthogonalised in one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrices with singular values around 1, of (N, rows, columns): a quintic Newton-Schulz iteration."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = x if matrices.shape[1] <= matrices.shape[2] else x.mT
    return result


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, over parameters of two or more dimensions."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; `closure` is not supported."""
        if closure is not None:
            raise NotImplementedError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[0], parameter[0].numel()].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                buffers = [
                    self.state[p].setdefault(
                        "momentum", torch.zeros_like(p, memory_format=torch.contiguous_format)
                    )
                    for p in parameters
                ]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                looked_ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
                update = orthogonalise(torch.stack([u.reshape(rows, columns) for u in looked_ahead]))
                size = 0.2 * max(rows, columns) ** 0.5  # root mean square of an AdamW update
                for parameter, change in zip(parameters, update, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(change.view_as(parameter), alpha=-group["lr"] * size)


def restore(optimizers: list[torch.optim.Optimizer], saved: list[dict[str, Any]]) -> None:
    """Optimizers go on from their saved states, with their own settings: the configuration may have changed."""
    for optimizer, state in zip(optimizers, saved, strict=True):
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)


def optimizers(
    matrices: list[nn.Parameter], rest: list[nn.Parameter], learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for `matrices`, AdamW for `rest`, at one learning rate."""
    return [
        Muon(matrices, lr=learning_rate, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay),
    ]
