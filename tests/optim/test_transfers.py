"""What the host does beside a GPU: uploads once a step, counts steps by itself, waits once for offloaded state, and
refuses to be recorded into a CUDA graph. ExhibitResult without a GPU."""

import pytest
import torch
import zoo
from launches import Launches
from torch import nn

from lowmem.optim import SGD, AdamMini, FusedBackward, Lion, Lomo
from lowmem.optim.core import rule, rule_optimizer, storage, transfers

META = torch.device("meta")


def test_scalars_of_a_step_go_up_in_one_copy_however_many_tensors_ask():
    h = {"lr": 0.1, "eps": 1e-8, "factor": 1.0, "reduce": "mean", "first": False}
    with Launches() as counter:
        found = [rule.as_tensors(h, META) for _ in range(5)]
    assert counter.uploads == 1
    assert all(again is found[0] for again in found)
    assert found[0]["lr"].is_meta and found[0]["lr"].shape == () and found[0]["reduce"] == "mean"
    assert [found[0][key].storage_offset() % 4 for key in ("lr", "eps", "factor")] == [0, 0, 0]


def test_scalars_on_the_device_are_those_of_the_step_for_every_device():
    h = {"lr": 0.1, "eps": 1e-8, "first": False}
    on_cpu, on_meta = rule.as_tensors(h, torch.device("cpu")), rule.as_tensors(h, META)
    assert (on_cpu["lr"].item(), on_cpu["eps"].item()) == pytest.approx((0.1, 1e-8), rel=1e-7)
    assert set(on_cpu) == set(on_meta) == {"lr", "eps", "first"}


@pytest.mark.parametrize("rule", [AdamMini, Lion])
def test_a_saved_step_counter_is_kept_on_the_host_wherever_it_was_saved(rule):
    model = zoo.net()
    optimizer = rule(model, lr=1e-3)
    zoo.train(optimizer, model, 2)
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state["step"] = SaysGpu(state["step"])
    other = rule(zoo.net(), lr=1e-3)
    other.load_state_dict(saved)
    assert {type(state["step"]) for state in other.state.values()} == {torch.Tensor}
    assert {state["step"].item() for state in other.state.values()} == {2.0}


class SaysGpu(torch.Tensor):
    """A tensor that lies on a GPU by its own account: only an explicit copy to the host makes it a plain one."""

    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_subclass(cls, value)

    def to(self, *where, **settings):
        found = super().to(*where, **settings).as_subclass(torch.Tensor)
        assert where == ("cpu",)
        return found


@pytest.mark.parametrize(
    "build",
    [
        lambda m: AdamMini(m, lr=1e-2),
        lambda m: AdamMini(m, lr=1e-2, nonfinite="skip"),
        lambda m: Lomo(m, lr=1e-2),
        lambda m: Lomo(m, lr=1e-2, max_grad_norm=1.0),
    ],
    ids=["step", "step that looks at gradients", "backward", "backward that measures"],
)
def test_inside_a_cuda_graph_a_step_is_refused_in_one_line_before_anything_waits(monkeypatch, build):
    model = zoo.net()
    optimizer = build(model)
    before = zoo.snapshot(model)
    waiting = {name: getattr(torch.Tensor, name) for name in ("item", "__bool__", "__float__")}

    def waited(*_):
        raise AssertionError("a number was read while a graph was captured")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for name in waiting:
        monkeypatch.setattr(torch.Tensor, name, waited)
    with pytest.raises(RuntimeError, match="capture forward and backward only") as caught:
        zoo.train(optimizer, model, 1)
    for name, kept in waiting.items():
        monkeypatch.setattr(torch.Tensor, name, kept)
    assert "\n" not in str(caught.value)
    assert zoo.same(before, zoo.snapshot(model))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    fresh = build(model)
    zoo.train(fresh, model, 1)
    assert not zoo.same(before, zoo.snapshot(model))


@pytest.mark.parametrize("inside_backward", [False, True], ids=["step", "backward"])
def test_offloaded_state_is_waited_for_once_a_step_and_state_beside_its_parameter_is_copied_as_ever(
    monkeypatch, inside_backward
):
    waits, copies = [], []
    copy = torch.Tensor.copy_

    def copy_(self, source, non_blocking=False):
        copies.append(non_blocking)
        return copy(self, source, non_blocking)

    monkeypatch.setattr(rule_optimizer, "wait_for", lambda devices: waits.append(list(devices)))
    model = zoo.net(torch.bfloat16)
    rule = SGD(model, lr=1e-2, momentum=0.9, offload=True)
    optimizer = FusedBackward(rule) if inside_backward else rule
    zoo.train(optimizer, model, 1)
    waits.clear()
    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    zoo.train(optimizer, model, 1, start=1)
    assert len(waits) == 1 and len(waits[0]) == len(list(model.parameters()))
    assert copies and not any(copies)


def test_state_that_lies_elsewhere_is_copied_back_without_waiting(monkeypatch):
    """A parameter on meta with its momentum on the CPU, as an offloaded one with pinned momentum."""
    seen = []
    monkeypatch.setattr(
        storage, "round_into", lambda target, source, rounding, wait=True: seen.append((target.device, wait))
    )
    p = nn.Parameter(torch.empty(3, 4, device=META))
    rule = SGD([p], lr=1e-2, momentum=0.9)
    rule.state[p].update(step=torch.zeros(()), momentum_buffer=torch.zeros(3, 4))
    p.grad = torch.empty(3, 4, device=META)
    rule.step()
    assert seen == [(torch.device("cpu"), False)]


def test_only_gpus_are_waited_for(monkeypatch):
    waited = []

    class Stream:
        def __init__(self, device):
            self.device = device

        def synchronize(self):
            waited.append(self.device)

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    zero, one = torch.device("cuda:0"), torch.device("cuda:1")
    transfers.wait_for([torch.device("cpu"), zero, one, zero, META])
    assert sorted(map(str, waited)) == ["cuda:0", "cuda:1"]
