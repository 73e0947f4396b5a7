"""Host time of an optimizer step on DTensors, which memory/hardware.py's DTENSOR stands for.

    python benchmarks/dtensor_dispatch.py

291 tiny tensors, as many as Llama-2-7B has, split over two ranks of PyTorch's fake process group: nothing to compute, so
what is measured is what the host does to start each operation. The official Adam-mini goes through DTensor, tensor by
tensor; torch's AdamW starts each operation on a list of them; ours work on the local tensors behind them.
"""

import logging
import statistics
import time
import warnings

import torch
import torch.distributed as dist
from adam_mini import Adam_mini
from timing import machine, table
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lowmem import optim
from lowmem.memory.official import Official
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


def seconds(step, rounds: int = 11) -> float:
    """Median time of a step, after two that make its state."""
    step(), step()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def operations() -> int:
    """How many operations official.py counts for a step of Adam-mini."""
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
        found["torch AdamW(foreach=True)", label] = seconds(torch.optim.AdamW(of[0].parameters(), foreach=True).step)
        official = Adam_mini(named_parameters=of[1].named_parameters(), lr=1e-6, **names)
        found["adam-mini (official)", label] = seconds(official.step)
        found["lowmem AdamMini", label] = seconds(optim.AdamMini(of[2], lr=1e-6).step)
    optimizers = dict.fromkeys(name for name, _ in found)
    rows = [(name, *(f"{1000 * found[name, label]:.1f}" for label in ("tensors", "DTensors"))) for name in optimizers]
    count = operations()
    each = found["adam-mini (official)", "DTensors"] / count
    print(f"{machine()}\n\n{table(rows, ('step of 291 tensors, ms', 'on tensors', 'on DTensors'))}")
    print(f"\nDTENSOR: {each:.2g} s for each of the {count} operations of the official Adam-mini")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
