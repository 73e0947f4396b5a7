"""Accidents and misuse on several processes: an error in words on every rank, in bounded time. And CPU offload."""

import os
import re
import time

import pytest
import ranks
import sharded_models
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from lowmem.optim import SM3, AdaLomo, AdamMini, AdamW, FusedBackward, Lomo

pytestmark = pytest.mark.slow
PATIENCE = 4  # seconds until a rank gives up


def data(step: int) -> torch.Tensor:
    return torch.randint(0, 11, (6, 9), generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    return model(data(step)[:, :-1], data(step)[:, 1:])


def die(rank: int, world: int, how: str) -> str:
    model = sharded_models.sharded("fsdp", sharded_models.build(), world)
    optimizer = AdamMini(model, lr=1e-3) if how == "step" else FusedBackward(AdamMini(model, lr=1e-3))
    for k in range(3):
        if rank == 1 and k == 2:
            if how == "step":
                loss_of(model, k).backward()
            os._exit(7)
        try:
            if how == "step":
                loss_of(model, k).backward()
                optimizer.step()
                optimizer.zero_grad()
            else:
                optimizer.backward(loss_of(model, k))
                optimizer.step()
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"
    return "nobody noticed"


@pytest.mark.parametrize("how", ["step", "backward"])
def test_when_a_rank_dies_the_others_raise_within_the_time_out(how):
    started = time.monotonic()
    found = ranks.outcomes(die, 2, how)
    assert found[1] == ("dead", 7)
    assert found[0][0] == "ok" and "Error" in found[0][1], found
    assert time.monotonic() - started < ranks.COLLECTIVE_TIMEOUT + 60


def stop(rank: int, world: int) -> str:
    model = sharded_models.sharded("fsdp", sharded_models.build(), world)
    optimizer = AdamMini(model, lr=1e-3)
    for k in range(2):
        loss_of(model, k).backward()
        if rank == 1 and k == 1:
            time.sleep(PATIENCE + 3)  # alive, but never comes
            return "slept"
        try:
            optimizer.step()
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"
        optimizer.zero_grad()
    return "nobody noticed"


def test_when_a_rank_stands_still_the_others_raise_after_the_time_out():
    found = ranks.launch(stop, 2, patience=PATIENCE)
    assert re.search("[Tt]imed? ?out|closed|reset", found[0]), found


def mismatch(rank: int, world: int, what: str) -> str:
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (world,))
    rows = 12 if what == "shape" and rank == 1 else 10
    model = nn.Module()
    model.weight = nn.Parameter(distribute_tensor(torch.randn(rows, 6), mesh, [Shard(0)], src_data_rank=None))
    if what == "count" and rank == 1:
        model.extra = nn.Parameter(distribute_tensor(torch.randn(4, 4), mesh, [Shard(0)], src_data_rank=None))
    if what == "overlap":  # both ranks think that they hold everything, and call it a shard
        part = DTensor.from_local(torch.randn(10, 6), mesh, [Shard(0)], run_check=False, shape=(10, 6), stride=(6, 1))
        model.weight = nn.Parameter(part)
    if what == "partial":
        model.weight = nn.Parameter(DTensor.from_local(torch.randn(10, 6), mesh, [Partial()], run_check=False))
    try:
        optimizer = SM3(model, lr=1e-2)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "nothing was refused"


MISMATCHES = {
    "shape": "rank . has weight .*; build the same model and optimizer on every rank, with the same mesh",
    "count": "parameters sharded over this mesh.*build the same model and optimizer",
    "overlap": "holds .10, 6. here, not the rectangle .5, 6.",
    "partial": "partial sums.*redistribute it first",
}


def test_ranks_that_do_not_fit_together_are_told_so_on_every_rank():
    ranks.refusals(mismatch, MISMATCHES)


def late(rank: int, world: int) -> list[str]:
    """The optimizer was built before the model was sharded."""
    found = []
    for what in ("model", "parameters"):
        model = sharded_models.build()
        optimizer = AdamW(model if what == "model" else model.parameters(), lr=1e-3)
        sharded_models.sharded("fsdp", model, world)
        loss_of(model, 0).backward()
        try:
            optimizer.step()
            found.append("nothing was refused")
        except RuntimeError as error:
            found.append(str(error))
    return found


def test_an_optimizer_built_before_sharding_says_so():
    for found in ranks.launch(late, 2):
        for text in found:
            assert "sharded after the optimizer was built" in text and "shard the model first" in text


def spoiled(rank: int, world: int) -> dict:
    """inf in the part of one rank only: all ranks skip, or all raise."""
    found = {}
    for how in ("skip", "raise"):
        model = sharded_models.sharded("fsdp", sharded_models.build(), world)
        optimizer = AdamMini(model, lr=1e-3, nonfinite=how)
        before = sharded_models.weights(model)
        loss_of(model, 0).backward()
        if rank == 1:
            list(model.parameters())[3].grad.to_local().view(-1)[0] = torch.inf
        try:
            optimizer.step()
            found[how] = "stepped"
        except FloatingPointError as error:
            found[how] = str(error)
        found[f"{how} moved"] = sharded_models.worst(before, sharded_models.weights(model))
    return found


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all():
    for rank, found in enumerate(ranks.launch(spoiled, 2)):
        assert found["skip"] == "stepped" and found["skip moved"] == 0.0
        assert "gradient holds inf or nan; nothing was updated" in found["raise"] and found["raise moved"] == 0.0
        assert ("another rank" in found["raise"]) == (rank == 0)


# -- CPU offload -------------------------------------------------------------------------------------------------------------


def offloaded(rank: int, world: int) -> dict:
    """fully_shard with and without CPUOffloadPolicy, with step() and inside backward. On CPU both are the same memory."""
    found = {}
    cases = {
        "adam_mini": lambda m: AdamMini(m, lr=1e-2),
        "adamw": lambda m: AdamW(m, lr=1e-2),
        "adalomo": lambda m: AdaLomo(m, lr=1e-2),
        "lomo": lambda m: Lomo(m, lr=1e-1),
    }
    for name, build in cases.items():
        weights = []
        for policy in ({}, {"offload_policy": CPUOffloadPolicy(pin_memory=False)}):
            model = sharded_models.build()
            for block in model.blocks:
                fully_shard(block, **policy)
            fully_shard(model, **policy)
            optimizer = build(model)
            for k in range(4):
                if isinstance(optimizer, FusedBackward):
                    optimizer.backward(loss_of(model, k))
                else:
                    loss_of(model, k).backward()
                optimizer.step()
                optimizer.zero_grad()
            weights.append(sharded_models.weights(model))
        found[name] = sharded_models.worst(*weights)
    return found


def test_fully_shard_with_cpu_offload_gives_the_same_weights():
    for found in ranks.launch(offloaded, 2):
        assert found == dict.fromkeys(found, 0.0) and len(found) == 4


def replicated(rank: int, world: int) -> float:
    """DTensors that are whole on every rank need no sums at all."""
    mesh = init_device_mesh("cpu", (world,))
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    one, many = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
    with torch.no_grad():
        one.weight.copy_(weight)
    many.weight = nn.Parameter(distribute_tensor(weight, mesh, [Replicate()]))
    alone, together = AdamMini(one, lr=1e-2), AdamMini(many, lr=1e-2)
    counts = []
    for k in range(4):
        g = torch.randn(6, 4, generator=torch.Generator().manual_seed(k))
        one.weight.grad, many.weight.grad = g, distribute_tensor(g, mesh, [Replicate()])
        alone.step()
        counts.append(ranks.collectives(together.step))
    assert counts == [{}] * 4
    dist.barrier()
    return float((one.weight - many.weight.to_local()).detach().abs().max())


def test_replicated_dtensors_are_updated_without_any_collective():
    assert ranks.launch(replicated, 2) == [0.0, 0.0]
