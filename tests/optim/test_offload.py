"""State kept in CPU memory: the same numbers, and on CPU no other path at all."""

import pytest
import torch
import zoo
from torch import nn

from lowmem.optim import AdamMini


@pytest.mark.parametrize("name", zoo.SETTINGS)
def test_offload_gives_the_same_bits_and_the_same_state(name):
    cls, keywords = zoo.SETTINGS[name]
    models = [zoo.net(), zoo.net()]
    optimizers = [cls(models[0], **keywords), cls(models[1], **keywords, offload=True)]
    for model, optimizer in zip(models, optimizers):
        zoo.train(optimizer, model, 4)
    assert zoo.same(*(zoo.snapshot(model) for model in models))
    assert zoo.same(*(zoo.state_tensors(optimizer) for optimizer in optimizers))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
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
    assert torch.equal(models[0].weight, models[1].weight)
