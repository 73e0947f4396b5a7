"""A step of official_optimizers.py beside one of torch's AdamW and of the official Adam-mini: bytes, memory, kernels."""

import gc

import pytest
import torch
from adam_mini import Adam_mini
from torch import nn

from lowmem.errors import Misuse
from lowmem.memory import hardware, target_model
from lowmem.memory.accountant import TrainingSetup, estimate_memory
from lowmem.memory.official_optimizers import Official
from lowmem.memory.throughput import speed
from lowmem.memory.tracker import Tracker
from lowmem.models import llama

SHAPE = dict(n_layer=2, n_head=4, n_embd=256, n_hidden=512, vocab_size=512, block_size=16)


def model() -> nn.Module:
    torch.manual_seed(0)
    return llama.build(**SHAPE)


def cost(model: nn.Module, step) -> tuple[float, int, float]:
    """(bytes that the second step moves, kernels it starts, bytes it holds beyond what was there) over the weights' bytes."""

    def give_gradients():
        for p in model.parameters():
            p.grad = torch.randn_like(p)

    give_gradients()
    step()
    give_gradients()
    there = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]  # compilers leave fake ones behind
    with Tracker() as tracker, tracker.during("update", "temporaries"):
        tracker.mark(there, "parameters")
        step()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moved = sum(count * key[2] for key, count in tracker.work.items() if key[1] == "stream")
    kernels = sum(count for key, count in tracker.work.items() if key[2] > 64)  # step counters are single numbers
    return moved / weights, kernels, tracker.peaks["update"]["temporaries"] / weights


def official(name: str) -> tuple[nn.Module, callable]:
    net = model()
    optimizer = Official(net, name)
    optimizer.prepare()
    return net, optimizer.step


def test_adamw_moves_and_holds_what_torchs_does():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1, foreach=True)

    def theirs():
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()

    expected, found = cost(net, theirs), cost(*official("adamw"))
    assert found[0] == pytest.approx(expected[0], rel=0.02) and found[0] > 20
    assert found[1] == pytest.approx(expected[1], abs=2)
    assert found[2] == pytest.approx(expected[2], rel=0.02) and found[2] >= 1, "a copy as large as the weights"


def test_adam_mini_moves_and_holds_what_the_official_package_does():
    net = model()
    names = [(name.replace("wq", "q_proj").replace("wk", "k_proj"), p) for name, p in net.named_parameters()]
    settings = dict(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, dim=256, n_heads=4, verbose=False)
    optimizer = Adam_mini(named_parameters=names, **settings)

    def theirs():
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()

    expected, found = cost(net, theirs), cost(*official("adam_mini"))
    assert found[0] == pytest.approx(expected[0], rel=0.02)
    assert found[1] == pytest.approx(expected[1], rel=0.25)
    assert found[2] == pytest.approx(expected[2], rel=0.1)


def test_the_accountant_adds_the_copy_to_the_peak_and_the_delay_to_the_time():
    shape = target_model.find({"name": "llama", **SHAPE})
    ours, theirs = (
        TrainingSetup(optimizer={"name": "adamw", "lr": 1e-4}, gpus=2, precision="mixed", seq_len=16, official=official)
        for official in (False, True)
    )
    of_ours, of_theirs = estimate_memory(shape, ours), estimate_memory(shape, theirs)
    weights = 4 * shape.parameters() / 2
    assert of_theirs.phases["update"] - of_ours.phases["update"] == pytest.approx(weights, rel=0.1)
    assert of_theirs.most["optimizer_state"] == of_ours.most["optimizer_state"]
    gpu = hardware.find("a100-80gb")
    mini = TrainingSetup(optimizer={"name": "adam_mini"}, gpus=2, precision="mixed", seq_len=16, official=True)
    rate = speed(estimate_memory(shape, mini).work, mini, gpu)
    tensors = len(list(model().parameters()))
    assert rate.limits["update"] == "launches"
    assert rate.stages["update"] == pytest.approx(14 * tensors * hardware.DTENSOR, rel=0.2)


@pytest.mark.parametrize(
    "changes", [{"device": "cpu"}, {"offload": True}, {"zero": 1}, {"optimizer": {"name": "lomo"}}]
)
def test_what_it_does_not_simulate_is_refused(changes):
    cell = TrainingSetup(**{"optimizer": {"name": "adamw"}, "seq_len": 16, "official": True, **changes})
    with pytest.raises(Misuse, match="official"):
        estimate_memory(target_model.find({"name": "llama", **SHAPE}), cell)
