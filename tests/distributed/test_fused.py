"""Updates inside backward on several processes equal one process on the joined batch."""

import functools

import pytest
import ranks
import sharded_models
import torch
import torch.distributed as dist
import zoo
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowmem.optim import SGD, Adafactor, AdaLomo, AdamMini, AdamW, FusedBackward, Lomo

pytestmark = pytest.mark.slow

STEPS, BATCH = 5, 12
# (plain optimizer with step(), the same inside backward, tolerance after STEPS)
PAIRS = {
    "lomo": (SGD, Lomo, dict(lr=0.1), 1e-5),
    "adalomo": (lambda m, **k: Adafactor(m, **k), AdaLomo, dict(lr=1e-2), 5e-5),
    "adam_mini": (AdamMini, lambda m, process_group=None, max_grad_norm=None, **k: FusedBackward(
        AdamMini(m, **k), max_grad_norm, process_group=process_group), dict(lr=1e-3), 5e-5),
    "adamw": (AdamW, lambda m, process_group=None, max_grad_norm=None, **k: FusedBackward(
        AdamW(m, **k), max_grad_norm, process_group=process_group), dict(lr=1e-3), 5e-5),
}  # fmt: skip


def data(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 11, (BATCH, 9), generator=generator)


def loss_of(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return model(rows[:, :-1], rows[:, 1:])


def counted(fused: FusedBackward) -> tuple[dict, list]:
    """How often each hook fires, and how many gradients are alive whenever one does (its own included)."""
    calls, alive = {}, []
    params = fused.params
    for p in params.group_of:
        params.handles.pop(p).remove()

        def hook(p):
            calls[p] = calls.get(p, 0) + 1
            waiting = sum(len(w) for w in fused.current.waiting.values())
            alive.append(sum(q.grad is not None for q in params.group_of) + waiting)
            fused._arrived(p)

        params.handles[p] = p.register_post_accumulate_grad_hook(hook)
    return calls, alive


def train(rank: int, world: int, kind: str, clip: float | None) -> dict:
    found = {}
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for name, (plain, inside, settings, _) in PAIRS.items():
        one = sharded_models.build()
        reference = plain(one, **settings)
        many = (
            sharded_models.sharded("fsdp", sharded_models.build(), world) if kind == "fsdp" else sharded_models.build()
        )
        group = {"process_group": dist.group.WORLD} if kind == "group" else {}
        fused = inside(many, **settings, **group, max_grad_norm=clip)
        calls, alive = counted(fused)
        losses, norms = [], []
        for k in range(STEPS):
            loss = loss_of(one, data(k))
            loss.backward()
            if clip:
                norms.append([float(nn.utils.clip_grad_norm_(one.parameters(), clip))])
            reference.step()
            reference.zero_grad()
            calls.clear()
            closure = functools.partial(loss_of, many, data(k)[mine])
            ours = fused.backward(closure if kind == "fsdp" else closure())
            fused.step()
            assert all(p.grad is None for p in many.parameters())
            passes = 2 if clip else 1
            assert set(calls.values()) == {passes} and len(calls) == len(list(many.parameters())), (
                name,
                calls.values(),
            )
            dist.all_reduce(ours)
            losses.append(abs(float(loss) - float(ours) / world))
            if clip:
                norms[-1].append(fused.grad_norm)
        found[name] = {
            "worst": sharded_models.worst(sharded_models.weights(one), sharded_models.weights(many)),
            "loss": max(losses),
            "norms": norms,
            "alive": max(alive),
            "bundle": max(fused.params.bundle_size.values(), default=1),
        }
    return found


@pytest.mark.parametrize(
    "kind, world, clip", [("fsdp", 2, 0.5), ("fsdp", 3, None), ("group", 2, None), ("group", 3, 0.5)]
)
def test_training_inside_backward_equals_one_process_on_the_joined_batch(kind, world, clip):
    for found in ranks.launch(train, world, kind, clip):
        for name, seen in found.items():
            print(kind, world, clip, name, {k: v for k, v in seen.items() if k != "norms"})
            assert seen["worst"] <= PAIRS[name][-1], (name, seen)
            assert seen["loss"] <= 1e-4
            assert all(abs(a - b) <= 1e-5 * max(a, 1) for a, b in seen["norms"])
            if kind == "group":
                assert seen["alive"] == 1
            else:  # fully_shard makes the gradients of one group at once
                assert seen["alive"] <= 2 * seen["bundle"]


def live_at_depth(rank: int, world: int) -> dict:
    found = {}
    for kind in ("fsdp", "group"):
        for depth in (2, 6):
            torch.manual_seed(0)
            model = sharded_models.gpt2.build(**{**zoo.TINY, "n_layer": depth})
            if kind == "fsdp":
                model = sharded_models.sharded("fsdp", model, world)
            fused = Lomo(model, lr=1e-2, process_group=None if kind == "fsdp" else dist.group.WORLD)
            _, alive = counted(fused)
            fused.backward(loss_of(model, data(0)))
            found[kind, depth] = max(alive)
    return found


def test_live_gradients_do_not_grow_with_depth():
    for found in ranks.launch(live_at_depth, 2):
        print(found)
        assert found["fsdp", 2] == found["fsdp", 6]
        assert found["group", 2] == found["group", 6] == 1


def reductions(rank: int, world: int) -> dict:
    found = {}
    for name, build in {
        "adam_mini": lambda m: FusedBackward(AdamMini(m, lr=1e-3)),
        "adalomo": lambda m: AdaLomo(m, lr=1e-3),
        "lomo": lambda m: Lomo(m, lr=1e-3),
        "lomo-norm": lambda m: Lomo(m, lr=1e-3, max_grad_norm=1.0),
    }.items():
        model = sharded_models.sharded("fsdp", sharded_models.build(), world)
        fused = build(model)
        fused.backward(functools.partial(loss_of, model, data(0)))
        fused.step()
        again = functools.partial(fused.backward, functools.partial(loss_of, model, data(1)))
        found[name] = ranks.collectives(again).get("all_reduce", 0)
    return found


def test_reductions_are_bundled_per_fully_shard_group():
    """Three groups (two blocks, the rest): one reduction per stage and group, and one for the global norm."""
    for found in ranks.launch(reductions, 2):
        assert found == {"adam_mini": 3, "adalomo": 6, "lomo": 0, "lomo-norm": 1}


def frozen_embedding(rank: int, world: int) -> bool:
    """Parameters without gradient keep still, and the group's other parameters are still updated."""
    model = sharded_models.build()
    model.tokens.weight.requires_grad_(False)
    model = sharded_models.sharded("fsdp", model, world)
    before = sharded_models.weights(model)
    fused = Lomo(model, lr=0.1)
    fused.backward(loss_of(model, data(0)))
    fused.step()
    after = sharded_models.weights(model)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    return moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_frozen_parameters_do_not_hold_up_their_group():
    assert all(ranks.launch(frozen_embedding, 2))


# -- refusals --------------------------------------------------------------------------------------------------------------


def refuse(rank: int, world: int, how: str) -> str:
    model = sharded_models.build()
    before = sharded_models.weights(model)
    rows = data(rank)
    try:
        if how == "ddp-first":
            Lomo(DistributedDataParallel(model), lr=0.1)
        elif how == "ddp-later":
            fused = Lomo(model, lr=0.1, process_group=dist.group.WORLD)
            fused.backward(loss_of(DistributedDataParallel(model), rows))
        elif how == "ddp-without-model":
            fused = Lomo(list(model.parameters()), lr=0.1, process_group=False)
            wrapped = DistributedDataParallel(model)
            fused.backward(loss_of(wrapped, rows))
        elif how == "nobody-averages":
            Lomo(model, lr=0.1).backward(loss_of(model, rows))
        elif how == "twice-averaged":
            model = sharded_models.sharded("fsdp", model, world)
            Lomo(model, lr=0.1, process_group=dist.group.WORLD)
        elif how == "norm-without-closure":
            model = sharded_models.sharded("fsdp", model, world)
            Lomo(model, lr=0.1, max_grad_norm=1.0).backward(loss_of(model, rows))
        elif how == "built-before-sharding":
            fused = Lomo(model, lr=0.1)
            model = sharded_models.sharded("fsdp", model, world)
            fused.backward(loss_of(model, rows))
    except RuntimeError as error:
        if how not in ("ddp-without-model",):  # that one can only be seen afterwards
            assert sharded_models.worst(before, sharded_models.weights(model)) == 0.0
        return str(error)
    return "nothing was refused"


REFUSED = {
    "ddp-first": "wrapped in DistributedDataParallel.*process_group",
    "ddp-later": "wrapped in DistributedDataParallel.*process_group",
    "ddp-without-model": "put back after it had been used.*DistributedDataParallel",
    "nobody-averages": "nothing averages the gradients.*process_group",
    "twice-averaged": "arrives averaged; drop process_group",
    "norm-without-closure": "pass a closure",
    "built-before-sharding": "sharded after the optimizer was built; shard the model first",
}


def test_wrong_combinations_are_refused_on_every_rank():
    ranks.refusals(refuse, REFUSED)
