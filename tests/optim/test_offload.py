"""State kept in CPU memory: the same numbers, and on CPU no other path at all."""

import pytest
import torch
import zoo

from lowmem.optim import AdamMini
from lowmem.optim.core.rule_optimizer import RuleOptimizer


@pytest.mark.parametrize("name", zoo.SETTINGS)
def test_offload_gives_the_same_bits_and_the_same_state(name):
    cls, keywords = zoo.SETTINGS[name]
    models = [zoo.net(), zoo.net()]
    optimizers = [cls(models[0], **keywords), cls(models[1], **keywords, offload=True)]
    for model, optimizer in zip(models, optimizers):
        zoo.train(optimizer, model, 4)
    assert zoo.same(*(zoo.snapshot(model) for model in models))
    assert zoo.same(*(zoo.state_tensors(optimizer) for optimizer in optimizers))


class OnGpu(torch.nn.Parameter):
    """Says that it is on a GPU; there need not be one."""

    device = torch.device("cuda")


@pytest.mark.filterwarnings("ignore:AdamMini got parameters")
def test_moments_of_gpu_parameters_are_offloaded_and_block_scalars_are_not():
    optimizer = AdamMini([p := OnGpu(torch.ones(3, 4))], lr=1e-2, offload=True)
    assert optimizer.offloads(p, "exp_avg") and not optimizer.offloads(p, "exp_avg_sq")
    assert not AdamMini([p], lr=1e-2).offloads(p, "exp_avg")
    on_cpu = torch.nn.Parameter(torch.ones(3, 4))
    assert not AdamMini([on_cpu], lr=1e-2, offload=True).offloads(on_cpu, "exp_avg")


def test_offloaded_moments_are_pinned_when_made_and_when_loaded_and_used_in_place(monkeypatch):
    """The GPU's way of a state tensor with CPU tensors in all places; tests/gpu has the same with a GPU."""
    pinned = {}  # the tensors themselves, so that ids stay theirs

    def pin(tensor):
        copy = tensor.clone()
        pinned[id(copy)] = copy
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(RuleOptimizer, "offloads", lambda self, p, key: key not in self.replicated(self.blocks(p)))
    plain, offloaded = zoo.net(), zoo.net()
    one, two = AdamMini(plain, lr=1e-2), AdamMini(offloaded, lr=1e-2)
    for model, optimizer in ((plain, one), (offloaded, two)):
        zoo.train(optimizer, model, 3)
    assert zoo.same(zoo.snapshot(plain), zoo.snapshot(offloaded))
    for p, state in two.state.items():  # what was pinned is what is used and updated
        for key, value in state.items():
            expected = key != "step" and key not in two.replicated(two.blocks(p))
            assert (id(value) in pinned) == expected, (two.name(p), key)
    assert zoo.same(zoo.state_tensors(one), zoo.state_tensors(two))
    pinned.clear()
    two.load_state_dict(one.state_dict())
    assert all(id(state["exp_avg"]) in pinned for p, state in two.state.items() if "exp_avg" in state)
