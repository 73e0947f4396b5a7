"""Small language models as one process has them, and the same sharded in every way that is tested."""

import torch
import zoo
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lowmem.models import gpt2, llama


def build(kind: str = "llama") -> nn.Module:
    """Heads of 8 rows; 24 hidden units; a vocabulary of 11: nothing divides evenly by 3, little by 4."""
    torch.manual_seed(0)
    return (llama if kind == "llama" else gpt2).build(**zoo.TINY, **({"n_hidden": 24} if kind == "llama" else {}))


def fsdp(model: nn.Module, mesh=None) -> nn.Module:
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def along(axis: int, mesh):
    """Every parameter as a DTensor cut along one axis (the last one, where there are fewer)."""

    def place(_name, module, mesh):
        for key, p in list(module.named_parameters(recurse=False)):
            cut = Shard(min(axis, p.ndim - 1)) if p.ndim else Replicate()
            setattr(module, key, nn.Parameter(distribute_tensor(p.detach(), mesh, [cut])))

    return lambda model: torch.distributed.tensor.distribute_module(model, mesh, place)


def linears(model: nn.Module) -> dict[str, object]:
    """Colwise and rowwise by turns over all linear layers of the blocks."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("blocks.")]
    return {n: ColwiseParallel() if i % 2 == 0 else RowwiseParallel() for i, n in enumerate(names)}


def sharded(how: str, model: nn.Module, world: int) -> nn.Module:
    """The model in one of the layouts; DTensor parameters throughout, or in its linear layers (tensor parallel)."""
    if how == "fsdp":
        return fsdp(model)
    if how in ("rows", "columns"):
        return along(int(how == "columns"), init_device_mesh("cpu", (world,)))(model)
    if how == "tensor-parallel":
        return parallelize_module(model, init_device_mesh("cpu", (world,)), linears(model))
    if how == "fsdp-tensor-parallel":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "model"))
        parallelize_module(model, mesh["model"], linears(model))
        return fsdp(model, mesh["data"])
    if how == "hybrid":
        return fsdp(model, init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copies", "shards")))
    raise ValueError(how)


def full(p: torch.Tensor) -> torch.Tensor:
    """The whole of a parameter; DTensors gather it by torch's own code."""
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name.replace("_checkpoint_wrapped_module.", ""): full(p) for name, p in model.named_parameters()}


def worst(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def batch(step: int, rows: int = 16) -> torch.Tensor:
    """Tokens (rows, 9) of one step, over all ranks."""
    return torch.randint(0, 11, (rows, 9), generator=torch.Generator().manual_seed(step))


def share(rows: torch.Tensor, rank: int, world: int) -> torch.Tensor:
    """A rank's equal part of a batch."""
    return rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]


def loss_of(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return model(rows[:, :-1], rows[:, 1:])
