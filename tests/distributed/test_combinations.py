"""Settings of fully_shard, DDP, tensor parallel and torch's state helpers that users combine, on four processes.

Each case trains a model twice, on one process with the joined batch and sharded, and returns the largest difference
between the weights; all cases of a test share their processes.
"""

import functools

import pytest
import ranks
import sharded_models
import torch
import torch.distributed as dist
from sharded_models import batch, loss_of, share
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint import state_dict as torchs
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from lowmem.optim import CAME, SGD, Adafactor, AdaLomo, AdamMini, FusedBackward, Lomo
from lowmem.optim.core.zero1 import Zero1

pytestmark = pytest.mark.slow

STEPS = 3
# name: (optimizer of the sharded model, the same with step() for the whole one, tolerance)
ADAM_MINI = (lambda m: AdamMini(m, lr=1e-3), lambda m: AdamMini(m, lr=1e-3), 5e-5)
BACKWARD = (lambda m: FusedBackward(AdamMini(m, lr=1e-3)), lambda m: AdamMini(m, lr=1e-3), 5e-5)
LOMO = (lambda m: Lomo(m, lr=0.1), lambda m: SGD(m, lr=0.1), 1e-5)
CLIPPED = (lambda m: Lomo(m, lr=0.1, max_grad_norm=1e3), lambda m: SGD(m, lr=0.1), 1e-5)  # two passes, factor one
ADALOMO = (lambda m: AdaLomo(m, lr=1e-2), lambda m: Adafactor(m, lr=1e-2), 5e-5)
CAMES = (lambda m: CAME(m, lr=1e-3), lambda m: CAME(m, lr=1e-3), 5e-5)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).tanh())


class Layers(nn.Module):
    """Embedding, two blocks, head: what tensor parallel plans are written for."""

    def __init__(self, tied: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.blocks = nn.ModuleList([Block(), Block()])
        if tied:
            self.head.weight = self.tokens.weight
            self.blocks[1].requires_grad_(False)

    def forward(self, x, y):
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), y.flatten())


class Small(nn.Module):
    """Axes of one to three: most ranks hold nothing of a parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(3, 2), nn.Linear(2, 1), nn.Conv2d(1, 3, 2, bias=False)

    def forward(self, x, y):
        x = x[:, :3].float() / 11
        image = x.view(-1, 1, 1, 3).expand(-1, 1, 2, 3)
        return (self.b(self.a(x).tanh()) - y[:, :1].float() / 11).square().mean() + self.c(image).square().mean()


def compare(rank: int, world: int, wrap, pair, make=sharded_models.build) -> tuple[float, float]:
    """(largest difference of weights, tolerance) after training on the joined batch and on its shares."""
    sharded, whole, tolerance = pair
    one, many = make(), make()
    many = wrap(many) or many
    alone, together = whole(one), sharded(many)
    for k in range(STEPS):
        loss_of(one, batch(k)).backward()
        alone.step()
        alone.zero_grad()
        loss = functools.partial(loss_of, many, share(batch(k), rank, world))
        if isinstance(together, FusedBackward):
            together.backward(loss)
        else:
            loss().backward()
        together.step()
        together.zero_grad()
    return sharded_models.worst(sharded_models.weights(one), sharded_models.weights(many)), tolerance


def sharded(**keywords):
    def wrap(model):
        for block in model.blocks:
            fully_shard(block, **keywords)
        return fully_shard(model, **keywords)

    return wrap


def keep_gathered(model):
    sharded_models.fsdp(model).set_reshard_after_backward(False)


def checkpointed(model):
    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block)
    return sharded_models.fsdp(model)


def fully_shard_settings(rank: int, world: int) -> dict:
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copies", "shards"))
    tied = functools.partial(Layers, tied=True)
    run = functools.partial(compare, rank, world)
    found = {}
    for name, pair in {"backward": BACKWARD, "clip": CLIPPED, "adalomo": ADALOMO}.items():
        found["hybrid", name] = run(sharded(mesh=mesh), pair)
    for name, pair in {"mini": ADAM_MINI, "clip": CLIPPED}.items():
        found["no reshard after forward", name] = run(sharded(reshard_after_forward=False), pair)
        found["tied and frozen", name] = run(fully_shard, pair, make=tied)
        found["checkpoint wrapper", name] = run(checkpointed, pair)
    found["kept gathered after backward", "lomo"] = run(keep_gathered, LOMO)
    for name, pair in {"mini": ADAM_MINI, "came": CAMES, "adalomo": ADALOMO, "clip": CLIPPED}.items():
        found["axes shorter than the world", name] = run(fully_shard, pair, make=Small)
    return found


def test_every_setting_of_fully_shard_gives_the_weights_of_one_process():
    for found in ranks.launch(fully_shard_settings, 4):
        for case, (worst, tolerance) in found.items():
            assert worst <= tolerance, (case, worst)


def tensor_parallel(model, mesh, sequence: bool):
    outside = Shard(1) if sequence else Replicate()  # where activations are between layers
    plan = {
        "tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=outside),
        "head": ColwiseParallel(input_layouts=outside, output_layouts=Replicate()),
    }
    for i in range(2):
        plan[f"blocks.{i}.up"] = ColwiseParallel(input_layouts=outside)
        plan[f"blocks.{i}.down"] = RowwiseParallel(output_layouts=outside)
        if sequence:
            plan[f"blocks.{i}.norm"] = SequenceParallel()
    return parallelize_module(model, mesh, plan)


def tensor_parallel_cases(rank: int, world: int) -> dict:
    found = {}
    line = init_device_mesh("cpu", (world,))
    grid = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "model"))

    def alone(model):
        return tensor_parallel(model, line, sequence=False)

    def both(model):
        tensor_parallel(model, grid["model"], sequence=True)
        return sharded_models.fsdp(model, grid["data"])

    for name, pair in {"mini": ADAM_MINI, "backward": BACKWARD, "lomo": LOMO, "clip": CLIPPED}.items():
        found["tensor", name] = compare(0, 1, alone, pair, make=Layers)
        found["tensor, sequence and fully_shard", name] = compare(rank // 2, 2, both, pair, make=Layers)
    return found


def test_tensor_parallel_training_gives_the_weights_of_one_process():
    for found in ranks.launch(tensor_parallel_cases, 4):
        for case, (worst, tolerance) in found.items():
            assert worst <= tolerance, (case, worst)


# -- gradient accumulation, mixed precision, one-sided gradients -------------------------------------------------------


def accumulate(rank: int, world: int) -> dict:
    """Two micro-batches per step, with gradients sent only after the second, then clipped by the global norm."""
    found = {}
    for kind in ("ddp", "zero1", "fsdp"):
        one, many = sharded_models.build(), sharded_models.build()
        outside = sharded_models.fsdp(many) if kind == "fsdp" else DistributedDataParallel(many)
        alone, together = AdamMini(one, lr=1e-3), AdamMini(many, lr=1e-3)
        if kind == "zero1":
            together = Zero1(together)
        for k in range(STEPS):
            loss_of(one, batch(k)).backward()
            nn.utils.clip_grad_norm_(one.parameters(), 0.5)
            alone.step()
            alone.zero_grad()
            first, second = share(batch(k), rank, world).chunk(2)
            if kind == "fsdp":
                many.set_requires_gradient_sync(False)
                (loss_of(many, first) / 2).backward()
                many.set_requires_gradient_sync(True)
            else:
                with outside.no_sync():
                    (loss_of(outside, first) / 2).backward()
            (loss_of(outside, second) / 2).backward()
            nn.utils.clip_grad_norm_(many.parameters(), 0.5)
            together.step()
            together.zero_grad()
        found[kind] = sharded_models.worst(sharded_models.weights(one), sharded_models.weights(many))
    return found


def bf16_compute(rank: int, world: int) -> dict:
    """MixedPrecisionPolicy: fp32 weights, bf16 compute; inside backward and with step() see the same gradients."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found = {}
    for name, (inside, plain, _) in {"lomo": LOMO, "adam_mini": BACKWARD}.items():
        weights = []
        for build in (inside, plain):
            model = sharded(mp_policy=policy)(sharded_models.build())
            optimizer = build(model)
            for k in range(STEPS):
                loss = loss_of(model, share(batch(k), rank, world))
                optimizer.backward(loss) if build is inside else loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            weights.append(sharded_models.weights(model))
        found[name] = sharded_models.worst(*weights)
        found[f"{name} dtype"] = all(w.dtype == torch.float32 for w in weights[0].values())
    return found


def one_sided(rank: int, world: int, kind: str) -> object:
    """Half of the ranks use one layer, half the other."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    one = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    one.load_state_dict(model.state_dict())
    x = torch.arange(8.0).view(2, 4)
    loss = model["a" if rank % 2 == 0 else "b"](x).sum()
    if kind == "lomo":
        try:
            Lomo(model, lr=0.1, process_group=dist.group.WORLD).backward(loss)
        except RuntimeError as error:
            return str(error), sharded_models.worst(sharded_models.weights(one), sharded_models.weights(model))
        return "nothing was refused", None
    together, alone = Zero1(AdamMini(model, lr=1e-2), average=True), AdamMini(one, lr=1e-2)
    loss.backward()
    together.step()
    ((one["a"](x) + one["b"](x)).sum() / 2).backward()
    alone.step()
    return sharded_models.worst(sharded_models.weights(one), sharded_models.weights(model))


def mixed(rank: int, world: int) -> dict:
    return {
        "accumulated": accumulate(rank, world),
        "bf16": bf16_compute(rank, world),
        "lomo": one_sided(rank, world, "lomo"),
        "zero1": one_sided(rank, world, "zero1"),
    }


def test_accumulation_clipping_mixed_precision_and_one_sided_gradients():
    for found in ranks.launch(mixed, 4):
        assert max(found["accumulated"].values()) <= 5e-5 and len(found["accumulated"]) == 3, found
        assert found["bf16"] == {"lomo": 0.0, "lomo dtype": True, "adam_mini": 0.0, "adam_mini dtype": True}
        message, moved = found["lomo"]
        assert "gets a gradient on 2 of 4 processes only" in message and moved == 0.0
        assert found["zero1"] <= 5e-5


# -- torch's state helpers ---------------------------------------------------------------------------------------------

HELPED = {
    "adam_mini": lambda m: AdamMini(m, lr=1e-2),
    "adam_mini in backward": lambda m: FusedBackward(AdamMini(m, lr=1e-2)),
    "lomo": lambda m: Lomo(m, lr=0.1),
    "adalomo": lambda m: AdaLomo(m, lr=1e-2),
    "zero1": lambda m: Zero1(AdamMini(m, lr=1e-2), average=True),
}


def advance(model, optimizer, step: int) -> None:
    if isinstance(optimizer, FusedBackward):
        optimizer.backward(loss_of(model, batch(step)))
    else:
        loss_of(model, batch(step)).backward()
    optimizer.step()
    optimizer.zero_grad()


def helpers(rank: int, world: int) -> dict:
    """get_state_dict into set_*_state_dict of a fresh model and optimizer, then one more step of both."""
    found = {}
    for name, build in HELPED.items():
        wrap = (lambda m: m) if name == "zero1" else sharded_models.fsdp
        for full in (False, True):
            if full and name == "lomo":
                continue  # torch itself cannot broadcast the state of an optimizer that has none
            first = wrap(sharded_models.build())
            one = build(first)
            advance(first, one, 0)
            options = torchs.StateDictOptions(full_state_dict=full, cpu_offload=full)
            weights, state = torchs.get_state_dict(first, one, options=options)
            second = wrap(sharded_models.build("llama"))
            with torch.no_grad():
                for p in second.parameters():
                    p.mul_(0.5)
            two = build(second)
            options = torchs.StateDictOptions(full_state_dict=full, broadcast_from_rank0=full)
            torchs.set_model_state_dict(second, weights, options=options)
            torchs.set_optimizer_state_dict(second, two, state, options=options)
            advance(first, one, 1)
            advance(second, two, 1)
            found[name, full] = sharded_models.worst(sharded_models.weights(first), sharded_models.weights(second))
    return found


def test_torchs_state_helpers_carry_every_optimizer_over():
    for found in ranks.launch(helpers, 2):
        assert found == dict.fromkeys(found, 0.0) and len(found) == 9, found


# -- refusals ----------------------------------------------------------------------------------------------------------


def refusals(rank: int, world: int) -> dict:
    found = {}
    fused = Lomo(kept := sharded_models.fsdp(sharded_models.build()), lr=0.1)
    kept.set_requires_gradient_sync(False)
    flat = sharded_models.build()
    for name, act in {
        "kept back": lambda: fused.backward(loss_of(kept, batch(0))),
        "flat": lambda: AdamMini(FullyShardedDataParallel(flat, use_orig_params=True, device_id=torch.device("cpu"))),
    }.items():
        try:
            act()
            found[name] = "nothing was refused"
        except (RuntimeError, ValueError) as error:
            found[name] = str(error)
    return found


def test_gradients_that_fully_shard_keeps_and_flat_parameters_are_refused():
    for found in ranks.launch(refusals, 2):
        assert "set_requires_gradient_sync(False)" in found["kept back"]
        assert "FullyShardedDataParallel flattens parameters; use torch.distributed.fsdp.fully_shard" in found["flat"]
