from __future__ import annotations

import torch
from torch import nn

from worker.training import muon


def test_an_orthogonalised_matrix_has_singular_values_around_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 64), (2, 64, 16), (1, 32, 32)):
        values = torch.linalg.svdvals(muon.orthogonalise(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_muon_and_adamw_together_fit_a_convolution() -> None:
    torch.manual_seed(0)
    target, model = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3)
    optimizers = muon.optimizers([model.weight], [model.bias], learning_rate=2e-2, weight_decay=0.0)
    losses = []
    for _ in range(60):
        x = torch.randn(8, 4, 8, 8)
        loss = (model(x) - target(x).detach()).square().mean()
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
