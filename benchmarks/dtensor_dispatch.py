"""Host time of an optimizer step on DTensors with the PyTorch at hand; memory/hardware.py's DTENSOR is that of 2.8.

    python benchmarks/dtensor_dispatch.py

291 tiny tensors, as many as Llama-2-7B has, split over two ranks of PyTorch's fake process group: nothing to compute, so
what is measured is what the host does to start each operation. The official Adam-mini goes through DTensor, tensor by
tensor; torch's AdamW starts each operation on a list of them; ours work on the local tensors behind them.
"""

import logging
import statistics
import warnings

import torch
import torch.distributed as dist
from adam_mini import Adam_mini
from timing import machine, table
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lowmem import optim
from lowmem.memory.measured_peak import in_turn
from lowmem.memory.official_optimizers import Official
from lowmem.memory.tracker import Tracker
from lowmem.models import llama

SHAPE = dict(n_layer=32, n_head=32, n_embd=64, n_hidden=64, vocab_size=64, block_size=8)


def build(mesh) -> torch.nn.Module:
    """The model, split where there is a mesh, with gradients."""
    model = llama.build(**SHAPE)
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def operations() -> int:
    """How many operations official_optimizers.py counts for a step of Adam-mini."""
    model = build(None)
    optimizer = Official(model, "adam_mini")
    optimizer.prepare()
    with Tracker() as tracker, tracker.during("update", "temporaries"):
        optimizer.step()
    return sum(tracker.work.values())


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    names = dict(dim=64, n_heads=32, verbose=False)
    found = {}
    for label, mesh in (("tensors", None), ("DTensors", init_device_mesh("cpu", (2,)))):
        of = [build(mesh) for _ in range(3)]
        steps = {
            "torch AdamW(foreach=True)": torch.optim.AdamW(of[0].parameters(), foreach=True).step,
            "adam-mini (official)": Adam_mini(named_parameters=of[1].named_parameters(), lr=1e-6, **names).step,
            "lowmem AdamMini": optim.AdamMini(of[2], lr=1e-6).step,
        }
        alone = {name: in_turn({name: step}, 11)[name] for name, step in steps.items()}  # with warm caches
        found[label] = {name: statistics.median(times) for name, times in alone.items()}
    rows = [(name, *(f"{1000 * of[name]:.1f}" for of in found.values())) for name in found["tensors"]]
    count = operations()
    each = found["DTensors"]["adam-mini (official)"] / count
    print(f"{machine()}\n\n{table(rows, ('step of 291 tensors, ms', *(f'on {label}' for label in found)))}")
    print(f"\n{each:.2g} s for each of the {count} operations of the official Adam-mini")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
