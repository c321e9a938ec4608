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


def test_restored_optimizers_go_on_with_their_own_settings() -> None:
    def fresh(weight_decay: float) -> list[torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)
        layer(torch.ones(4)).sum().backward()
        return muon.optimizers([layer.weight], [layer.bias], learning_rate=2e-2, weight_decay=weight_decay)

    saved = fresh(0.01)
    for optimizer in saved:
        optimizer.step()
    restored = fresh(0.3)
    muon.restore(restored, [optimizer.state_dict() for optimizer in saved])
    for before, after in zip(saved, restored, strict=True):
        assert [group["weight_decay"] for group in after.param_groups] == [0.3]
        (known,), (state,) = before.state.values(), after.state.values()
        assert all(torch.equal(known[name], state[name]) for name in known)
