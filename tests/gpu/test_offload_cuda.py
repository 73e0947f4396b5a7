"""What only a GPU can show; tests/conftest.py leaves this folder out where there is none."""

import torch
import zoo
from torch import nn

from lowmem.optim import AdamMini


def test_on_a_gpu_moments_are_pinned_and_results_equal():
    models = [nn.Linear(64, 64).cuda() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [AdamMini(m.parameters(), lr=1e-2, offload=o) for m, o in zip(models, (False, True))]
    for step in range(4):
        torch.manual_seed(step)
        x = torch.randn(8, 64, device="cuda")
        for model, optimizer in zip(models, optimizers):
            zoo.apply(optimizer, model(x).square().mean())
    state = optimizers[1].state[models[1].weight]
    assert state["exp_avg"].device.type == "cpu" and state["exp_avg"].is_pinned()
    assert state["exp_avg_sq"].device.type == "cuda"  # block scalars are small
    torch.testing.assert_close(models[0].weight, models[1].weight, rtol=2e-6, atol=1e-6)  # kernels and stages
