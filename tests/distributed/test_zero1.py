"""Optimizer state split over data-parallel ranks: equal to one process, a share of the state each, under DDP and without."""

import pytest
import ranks
import sharded_models
import torch
import torch.distributed as dist
import zoo
from torch.nn.parallel import DistributedDataParallel

from lowmem.optim import SGD, AdamMini, AdamW, Lomo
from lowmem.optim.core.zero1 import Zero1

pytestmark = pytest.mark.slow

STEPS, BATCH = 5, 12


def data(step: int) -> torch.Tensor:
    return torch.randint(0, 11, (BATCH, 9), generator=torch.Generator().manual_seed(step))


def same_gradients(rank: int, world: int) -> dict:
    """20 steps from identical random gradients: rules with each kind of sum, and with none."""
    found = {}
    for rule in ("adam_mini", "adamw", "came", "sm3", "lamb", "adam_mini-int8", "adamw-int8"):
        cls, keywords = zoo.SETTINGS[rule]
        one, many = sharded_models.build(), sharded_models.build()
        alone, together = cls(one, **keywords), Zero1(cls(many, **keywords))
        counts = {}
        for k in range(20):
            generator = torch.Generator().manual_seed(k)
            for p, q in zip(one.parameters(), many.parameters()):
                p.grad = torch.randn(p.shape, generator=generator)
                q.grad = p.grad.clone()
            alone.step()
            counts = ranks.collectives(together.step)
        together.zero_grad()
        assert all(q.grad is None for q in many.parameters())
        own, saved = alone.state_dict(), together.state_dict()
        assert own["param_groups"] == saved["param_groups"]
        state = max(
            float((saved["state"][i][k].float() - v.float()).abs().max())
            for i, s in own["state"].items()
            for k, v in s.items()
        )
        back = Zero1(cls(sharded_models.build(), **keywords))  # and the unsharded state goes in again
        back.load_state_dict(own)
        again = max(
            float((v - back.state_dict()["state"][i][k]).abs().max())
            for i, s in own["state"].items()
            for k, v in s.items()
        )
        found[rule] = {
            "worst": sharded_models.worst(sharded_models.weights(one), sharded_models.weights(many)),
            "state": state,
            "again": again,
            "share": together.state_bytes() / max(alone.state_bytes(), 1),
            "counts": counts,
        }
    return found


def test_rules_with_split_state_end_where_one_process_ends():
    results = ranks.launch(same_gradients, 3)
    for found in results:
        for rule, seen in found.items():
            print(rule, seen)
            assert seen["worst"] <= 1e-6, (rule, seen)
            assert seen["state"] <= 1e-5 and seen["again"] == 0.0, (rule, seen)
            assert seen["counts"]["all_gather"] == 1
    for rule in ("adamw", "lamb"):  # every element's state is on one rank
        assert sum(found[rule]["share"] for found in results) == pytest.approx(1.0)


def end_to_end(rank: int, world: int) -> dict:
    """A split batch under DDP, and without it, against one process on the joined batch."""
    found = {}
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for name, build, tolerance in (
        ("adam_mini", lambda m: AdamMini(m, lr=1e-3), 5e-5),
        ("adamw", lambda m: AdamW(m, lr=1e-3), 5e-5),
        ("sgd", lambda m: SGD(m, lr=0.1), 1e-5),
    ):
        for wrapped in (True, False):
            one, many = sharded_models.build(), sharded_models.build()
            alone = build(one)
            outside = DistributedDataParallel(many) if wrapped else many
            together = Zero1(build(many), average=not wrapped)
            for k in range(STEPS):
                rows = data(k)
                one(rows[:, :-1], rows[:, 1:]).backward()
                alone.step()
                alone.zero_grad()
                outside(rows[mine, :-1], rows[mine, 1:]).backward()
                together.step()
                together.zero_grad()
            everyone = [None] * world
            dist.all_gather_object(everyone, [p.detach() for p in many.parameters()])
            equal = all(torch.equal(a, b) for other in everyone for a, b in zip(everyone[0], other))
            worst = sharded_models.worst(sharded_models.weights(one), sharded_models.weights(many))
            found[name, wrapped] = (worst, tolerance, equal)
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_training_with_split_state_equals_one_process_on_the_joined_batch(world):
    for found in ranks.launch(end_to_end, world):
        for case, (worst, tolerance, equal) in found.items():
            print(world, case, worst)
            assert equal  # bit for bit the same weights on every rank
            assert worst <= tolerance, case


def refuse(rank: int, world: int, what: str) -> str:
    model = sharded_models.build()
    try:
        if what == "fused":
            Zero1(Lomo(model, lr=0.1, process_group=False))
        elif what == "sharded":
            Zero1(AdamMini(sharded_models.sharded("fsdp", model, world), lr=1e-3))
        elif what == "stepped":
            inner = AdamMini(model, lr=1e-3)
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            inner.step()
            Zero1(inner)
        elif what == "group":
            Zero1(AdamMini(model, lr=1e-3)).add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    except (TypeError, RuntimeError) as error:
        return str(error)
    return "nothing was refused"


REFUSED = {
    "fused": "with step",
    "sharded": "sharded already",
    "stepped": "before the first step",
    "group": "cannot take further parameter groups",
}


def test_what_cannot_be_split_is_refused():
    ranks.refusals(refuse, REFUSED)


def test_without_a_process_group_it_says_what_is_missing():
    with pytest.raises(RuntimeError, match="init_process_group"):
        Zero1(AdamMini(sharded_models.build(), lr=1e-3))
