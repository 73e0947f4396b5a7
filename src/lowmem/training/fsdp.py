"""Sharding a model's weights and state over all ranks with fully_shard."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lowmem.distributed import device, rank, world
from lowmem.weights import lazy_weights


def shard_model(model: nn.Module) -> nn.Module:
    """The model sharded over all ranks, block by block; each rank reads its part of weights that are still in files."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device(), (world(),))  # else a run on CPUs would use the GPUs of its machine
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    lazy_weights.load(model, device())
    return model


def shard(model: nn.Module, seed: int) -> nn.Module:
    """The sharded model to train; afterwards every rank draws its own random numbers."""
    shard_model(model)
    torch.manual_seed(seed + 7919 * rank())  # dropout must not repeat itself over the batch; rank 0 stays as it was
    return model


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights and buffers of a sharded model on the CPU of rank 0; empty elsewhere. Collective."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every rank keeps all weights gathered: sampling token by token would gather them for each token."""
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)  # fully_shard's default
            part.reshard()
