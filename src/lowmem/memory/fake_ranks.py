"""Many GPUs in one process: PyTorch's fake process group answers for the other ranks, this one sees its own share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import nn

from lowmem.errors import Misuse
from lowmem.memory import expert_parallel
from lowmem.optim.core import sharding

# Linear layers by the name they have in their layer: split along outputs, or along inputs (Megatron, arXiv 1909.08053).
BY_OUTPUT = ("wq", "wk", "wv", "gate", "up", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
BY_INPUT = ("wo", "down", "o_proj", "down_proj")
TRIAL = "_propagate_tensor_meta_non_cached"


@contextlib.contextmanager
def pretend(cell) -> Iterator:
    """Inside, torch.distributed has the cell's GPUs as ranks; this process is rank 0, the others answer nothing.

    Yields {"data": mesh, "tensor": mesh}, and with expert parallelism {"replica": mesh} of the GPUs that hold the same
    experts; None for one GPU.
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
    sizes, names = (cell.data_parallel, cell.tensor_parallel), ("data", "tensor")
    if cell.expert_parallel > 1:
        sizes = (cell.data_parallel // cell.expert_parallel, cell.expert_parallel, cell.tensor_parallel)
        names = ("replica", "expert", "tensor")
    own_share = mock.patch.object(sharding, "agree", lambda asked: [cut for _, _, cut in asked])
    try:
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
        made = {name: mesh[name] for name in names if name != "expert"}
        if cell.expert_parallel > 1:
            made["data"] = mesh["replica", "expert"]._flatten("data")
        with own_share, real_meshes():  # nobody is there to ask whether shards fit together
            yield made
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def real_meshes() -> Iterator[None]:
    """What looks into small tensors of ranks and indices needs their values, also among fake tensors."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import _utils
    from torch.distributed.tensor._sharding_prop import ShardingPropagator
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    def with_values(function):
        def called(*args, **kwargs):
            with unset_fake_temporarily():
                return function(*args, **kwargs)

        return called

    def aside(function):
        def called(*args, **kwargs):  # DTensor tries each new operation once on whole tensors, to learn its shape
            tracker = _get_current_dispatch_mode()
            tracker.paused = True
            try:
                return function(*args, **kwargs)
            finally:
                tracker.paused = False

        return called

    shapes = mock.patch.object(ShardingPropagator, TRIAL, aside(getattr(ShardingPropagator, TRIAL)))
    joined = mock.patch.object(DeviceMesh, "_concatenate", staticmethod(with_values(DeviceMesh._concatenate)))
    name = "compute_local_shape_and_global_offset"
    with shapes, joined, mock.patch.object(_utils, name, with_values(getattr(_utils, name))):
        yield


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
        policy["reshard_after_forward"] = cell.zero == 3
        for module in expert_parallel.divide(model, cell.expert_parallel) if cell.expert_parallel > 1 else ():
            cut = placement(cell.data_parallel // cell.expert_parallel)
            fully_shard(module, mesh=mesh["replica"], shard_placement_fn=cut, **policy)
        for module in (*target.layers(model), model):
            fully_shard(module, mesh=mesh["data"], shard_placement_fn=placement(cell.data_parallel), **policy)
    return model


def placement(ranks: int):
    """Where fully_shard cuts a weight: along its rows, as it does by itself, or along the first length that the ranks divide
    where there are fewer rows than ranks. Eight experts on 64 GPUs would else be padded to 64."""
    from torch.distributed.tensor import Shard

    def chosen(p: nn.Parameter):
        fits = (dim for dim in range(1, p.ndim) if p.shape[dim] % ranks == 0)
        return Shard(next(fits, 0)) if p.ndim > 2 and p.shape[0] < ranks else None

    return chosen


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
    if not plan:
        raise Misuse("tensor-parallel: no linear layers of known names (q_proj, gate_proj, ...); use data parallelism")
    parallelize_module(layer, mesh, plan)


def share_heads(model: nn.Module, cell) -> None:
    """Tell attention layers of lowmem/models how many heads are here; after the optimizer has read how many there are."""
    for module in model.modules():
        for key in ("n_head", "n_kv_head"):
            if cell.tensor_parallel > 1 and isinstance(heads := getattr(module, key, None), int):
                if heads % cell.tensor_parallel:
                    closest = max(n for n in range(1, cell.tensor_parallel + 1) if heads % n == 0)
                    raise Misuse(
                        f"tensor-parallel {cell.tensor_parallel} does not divide {heads} heads; the nearest: {closest}"
                    )
                setattr(module, key, heads // cell.tensor_parallel)


def state_sharded(optimizer, cell):
    """The optimizer with its state split over the data-parallel ranks, where the stage is 1."""
    if cell.zero != 1 or cell.data_parallel == 1:
        return optimizer
    from lowmem.optim.core.fused_backward import FusedBackward
    from lowmem.optim.core.zero1 import Zero1

    if isinstance(optimizer, FusedBackward):
        raise Misuse("zero 1: an optimizer inside backward cannot split its state this way; use --zero 3")
    if cell.tensor_parallel > 1:
        raise Misuse("zero 1 with tensor-parallel: not supported; use --zero 3")
    return Zero1(optimizer, average=True)
