"""One update, against the lines that everybody writes by hand."""

import copy

import pytest
import torch
from torch.nn import functional as F

from lowmem.errors import Diverged, Misuse
from lowmem.optim import Lomo
from lowmem.training.task import Task
from lowmem.training.update import Updates

TRAIN = {"steps": 6, "batch_size": 8}
SCHEDULE = {"name": "cosine", "warmup_steps": 2}


def task(size: int, bad: int | None = None) -> Task:
    """A linear regression; micro-batch `bad` holds a NaN."""
    torch.manual_seed(0)

    def batch(index: int):
        x = torch.randn(size, 3, generator=torch.Generator().manual_seed(index))
        return (x * float("nan") if index == bad else x), x.sum(1, keepdim=True)

    def loss(model, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    return Task(torch.nn.Linear(3, 1), batch, loss, lambda model: {}, units=size)


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_updates_are_those_of_a_loop_by_hand(micro, clip):
    ours, theirs = task(micro), task(micro)
    parts = 8 // micro
    optimizer = torch.optim.SGD(ours.model.parameters(), lr=0.1)
    updates = Updates(ours, optimizer, {**TRAIN, "micro_batch_size": micro, "grad_clip": clip}, SCHEDULE, "cpu")
    other = torch.optim.SGD(theirs.model.parameters(), lr=0.1)
    for number, rate in enumerate([0.05, 0.1, 0.0853553, 0.05, 0.0146447, 0.0], 1):
        for group in other.param_groups:
            group["lr"] = rate
        losses = [theirs.loss(theirs.model, theirs.batch((number - 1) * parts + k)) for k in range(parts)]
        (sum(losses) / parts).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), clip or float("inf"))
        other.step()
        other.zero_grad()
        found = updates.make(number)
        assert found[0] == pytest.approx((sum(losses) / parts).item()) and found[1] == pytest.approx(norm.item())
        assert found[2] is None and optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-6)
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.optim.SGD, Lomo])
def test_what_is_not_finite_leaves_the_weights_and_is_told(kind):
    made = task(8, bad=1)
    optimizer = kind(made.model, lr=0.1) if kind is Lomo else kind(made.model.parameters(), lr=0.1)
    updates = Updates(made, optimizer, TRAIN, None, "cpu")
    assert updates.make_finite(1) > 0
    before = copy.deepcopy(made.model.state_dict())
    with pytest.raises(Diverged, match="loss is not finite at step 2"):
        updates.make_finite(2)
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    assert updates.make(3)[2] is None


@pytest.mark.parametrize("wrong", [{"micro_batch_size": 4}, {"grad_clip": 1.0}])
def test_updates_inside_backward_neither_accumulate_nor_are_clipped_from_outside(wrong):
    made = task(8)
    with pytest.raises(Misuse, match="updates inside backward"):
        Updates(made, Lomo(made.model, lr=0.1), {**TRAIN, **wrong}, None, "cpu")
