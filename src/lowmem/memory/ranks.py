"""Many GPUs in one process: PyTorch's fake process group answers for the other ranks, this one sees its own share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lowmem.errors import Misuse

# Linear layers by the name they have in their layer: split along outputs, or along inputs (Megatron, arXiv 1909.08053).
BY_OUTPUT = ("wq", "wk", "wv", "gate", "up", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
BY_INPUT = ("wo", "down", "o_proj", "down_proj")


@contextlib.contextmanager
def pretend(cell) -> Iterator:
    """Inside, torch.distributed has the cell's GPUs as ranks; this process is rank 0, the others answer nothing.

    Yields the device mesh with axes "data" and, where it is used, "tensor"; None for one GPU.
    """
    if cell.gpus == 1:
        yield None
        return
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise Misuse("a plan for several GPUs cannot be made inside a distributed run; run lowmem plan by itself")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=cell.gpus)
    names = ("data", "tensor") if cell.tensor_parallel > 1 else ("data",)
    try:
        yield init_device_mesh("cpu", (cell.data_parallel, cell.tensor_parallel)[: len(names)], mesh_dim_names=names)
    finally:
        dist.destroy_process_group()


def is_sharded(cell) -> bool:
    """Whether weights are split by fully_shard (ZeRO stages 2 and 3)."""
    return cell.data_parallel > 1 and cell.zero >= 2


def shard(model: nn.Module, target, cell, mesh) -> nn.Module:
    """The model as this rank holds it: split by tensor parallelism, then by fully_shard."""
    if cell.tensor_parallel > 1:
        for layer in target.layers(model):
            split(layer, mesh["tensor"], cell.tensor_parallel)
    if is_sharded(cell):
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        policy = {"mp_policy": mixed} if cell.precision == "mixed" else {}
        for module in (*target.layers(model), model):
            fully_shard(module, mesh=mesh["data"], reshard_after_forward=cell.zero == 3, **policy)
    return model


def split(layer: nn.Module, mesh, degree: int) -> None:
    """Tensor parallelism of one layer: heads and hidden neurons go to ranks, everything else is on each of them."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {}
    for name, module in layer.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and last in BY_OUTPUT + BY_INPUT:
            length = module.out_features if last in BY_OUTPUT else module.in_features
            if length % degree:
                raise Misuse(f"tensor-parallel {degree} does not divide {name} ({length}); use a divisor of it")
            plan[name] = ColwiseParallel() if last in BY_OUTPUT else RowwiseParallel()
        for key in ("n_head", "n_kv_head"):
            if hasattr(module, key):
                heads = getattr(module, key)
                if heads % degree:
                    closest = max(n for n in range(1, degree + 1) if heads % n == 0)
                    raise Misuse(f"tensor-parallel {degree} does not divide {heads} heads; the nearest: {closest}")
                setattr(module, key, heads // degree)
    if not plan:
        raise Misuse("tensor-parallel: no linear layers of known names (q_proj, gate_proj, ...); use data parallelism")
    parallelize_module(layer, mesh, plan)


def state_sharded(optimizer, cell):
    """The optimizer with its state split over the data-parallel ranks, where the stage is 1."""
    if cell.zero != 1 or cell.data_parallel == 1:
        return optimizer
    from lowmem.optim.fused_backward import FusedBackward
    from lowmem.optim.zero1 import Zero1

    if isinstance(optimizer, FusedBackward):
        raise Misuse("zero 1: an optimizer inside backward cannot split its state this way; use --zero 3")
    if cell.tensor_parallel > 1:
        raise Misuse("zero 1 with tensor-parallel: not supported; use --zero 3")
    return Zero1(optimizer, average=True)
