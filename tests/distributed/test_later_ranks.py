"""Zero1 and sharded models when weights are bound anew, replaced, thawed; and a reset of state."""

from collections import defaultdict

import pytest
import ranks
import sharded_models
import torch
import zoo
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lowmem.optim import AdamMini, AdamW
from lowmem.optim.core.zero1 import Zero1

pytestmark = pytest.mark.slow


def give(model, k: int) -> None:
    """The same random gradients on every rank, for what trains."""
    generator = torch.Generator().manual_seed(k)
    for p in model.parameters():
        g = torch.randn(p.shape, generator=generator)
        p.grad = g if p.requires_grad else None


def bound_anew(rank: int, world: int) -> dict:
    one, many = sharded_models.build(), sharded_models.build()
    alone, together = AdamMini(one, lr=1e-2), Zero1(AdamMini(many, lr=1e-2))
    for k in range(4):
        vector_to_parameters(parameters_to_vector(many.parameters()).detach().clone(), many.parameters())
        for model, optimizer in ((one, alone), (many, together)):
            give(model, k)
            optimizer.step()
    return {"same": zoo.same(zoo.snapshot(one), zoo.snapshot(many))}


def refusals(rank: int, world: int) -> dict:
    found = {}
    model = sharded_models.build()
    _, frozen = next(iter(model.named_parameters()))
    frozen.requires_grad_(False)
    optimizer = Zero1(AdamW(model, lr=1e-2))
    give(model, 0)
    optimizer.step()
    found["frozen stays"] = frozen.grad is None
    frozen.requires_grad_(True)
    give(model, 1)
    found["thawed"] = _message(optimizer.step)
    optimizer.param_groups = [{**group, "params": group["params"][1:]} for group in optimizer.param_groups]
    frozen.requires_grad_(False)
    found["groups"] = _message(optimizer.step)
    other = sharded_models.build()
    optimizer = Zero1(AdamW(other, lr=1e-2))
    module = next(m for m in other.modules() if "weight" in m._parameters)
    module.weight = torch.nn.Parameter(module.weight.detach().clone())
    give(other, 0)
    found["replaced"] = _message(optimizer.step)
    return found


def _message(act) -> str:
    try:
        act()
    except RuntimeError as error:
        return str(error)
    return ""


def reset(rank: int, world: int) -> dict:
    model = sharded_models.build()
    optimizer = Zero1(AdamMini(model, lr=1e-2))
    for k in range(3):
        give(model, k)
        optimizer.step()
    optimizer.state = defaultdict(dict)
    give(model, 3)
    optimizer.step()
    return {"steps": {float(entry["step"]) for entry in optimizer.state_dict()["state"].values()}}


def test_zero1_follows_weights_that_are_bound_to_other_storage():
    for kind, result in ranks.outcomes(bound_anew, 2):
        assert kind == "ok" and result["same"], result


def test_zero1_refuses_thawed_replaced_and_regrouped_weights_by_name():
    for kind, result in ranks.outcomes(refusals, 2):
        assert kind == "ok", result
        assert result["frozen stays"]
        assert "was frozen when Zero1 sharded the parameters" in result["thawed"]
        assert "other parameters than Zero1 has sharded" in result["groups"]
        assert "was replaced by another tensor" in result["replaced"]


def test_a_reset_reaches_the_state_inside_zero1():
    for kind, result in ranks.outcomes(reset, 2):
        assert kind == "ok" and result["steps"] == {1.0}, result


def thawed_shards(rank: int, world: int) -> dict:
    from torch.distributed.fsdp import fully_shard

    one, many = sharded_models.build(), sharded_models.build()
    names = [name for name, _ in one.named_parameters()][:2]
    for model in (one, many):
        for name, p in model.named_parameters():
            p.requires_grad_(name not in names)
    fully_shard(many)
    alone, together = AdamMini(one, lr=1e-2), AdamMini(many, lr=1e-2)
    tokens = torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(0))
    for k in range(4):
        if k == 2:
            for model in (one, many):
                model.requires_grad_(True)
        for model, optimizer in ((one, alone), (many, together)):
            optimizer.zero_grad()
            model(tokens[:, :-1], tokens[:, 1:]).backward()
            optimizer.step()
    full = {name: p.full_tensor() for name, p in many.named_parameters()}
    return {"difference": max((full[name] - p).abs().max().item() for name, p in one.named_parameters())}


def test_weights_thawed_after_fully_shard_train_as_on_one_process():
    for kind, result in ranks.outcomes(thawed_shards, 2):
        assert kind == "ok" and result["difference"] < 1e-5, result
