"""What a checkpoint's safety costs: saving as training does, against a plain torch.save of the same state.

    python benchmarks/checkpoint_save.py --gigabytes 1 --rounds 5

In pairs, one after the other in each round, in one folder, each beside its last checkpoint, which is then removed. plain:
torch.save. synced: the same, and wait for the disk. ours: training/checkpoint.py, which takes another name, seals, waits for
the disk and renames. Memory that the system has to find anew for a file costs more than all else: the first rounds are not
counted. Loading: how long the check of the file takes, and torch.load after it, once.
"""

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path

import timing
import torch

from lowmem import kept_files
from lowmem.memory.measured_peak import in_turn
from lowmem.training import checkpoint


def state(gigabytes: float, tensors: int = 48) -> dict:
    """Weights and two moments of as many bytes, as a training's checkpoint holds them."""
    count = int(gigabytes * 1e9 / 4 / 3 / tensors)
    made = [torch.randn(count) for _ in range(tensors)]
    moments = {k: {"exp_avg": w * 0.1, "exp_avg_sq": w * w} for k, w in enumerate(made)}
    return {"model": dict(enumerate(made)), "optimizer": {"state": moments}, "notes": {"step": 1}}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--gigabytes", type=float, default=1.0)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--folder", type=Path, help="on the disk that is meant; default: a temporary one")
    asked.add_argument("--busy", action="store_true", help="say that other work ran beside it")
    arguments = asked.parse_args()
    held = state(arguments.gigabytes)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        ours, number = Path(place) / "ours", itertools.count()

        def plain(wait: bool = False) -> None:
            old = list(Path(place).glob("*.pt"))
            with open(Path(place) / f"{next(number)}.pt", "wb") as file:
                torch.save(held, file)
                if wait:
                    os.fsync(file.fileno())
            for path in old:
                path.unlink()

        steps = {
            "plain": plain,
            "synced": lambda: plain(wait=True),
            "ours": lambda: checkpoint.save(ours, next(number), held),
        }
        seconds = in_turn(steps, arguments.rounds, warmup=3)
        (made,) = ours.glob("*.pt")
        size = made.stat().st_size
        start = time.perf_counter()
        kept_files.check(made)
        checked = time.perf_counter()
        torch.load(made, weights_only=True)
        loaded = time.perf_counter() - checked
    rows = []
    for base in ("plain", "synced"):
        middle, low, high = timing.ratios(seconds, "ours", base)
        rows.append((f"ours / {base}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}"))
    cores = len(os.sched_getaffinity(0))
    busy = ", busy machine" if arguments.busy else ""
    print(f"{timing.machine()}; {cores} of them for this; {size / 1e9:.2f} GB, {arguments.rounds} rounds{busy}")
    print(", ".join(f"{name} {sorted(times)[len(times) // 2]:.2f} s" for name, times in seconds.items()))
    print(f"checking it when it is loaded {checked - start:.2f} s, torch.load {loaded:.2f} s")
    print(timing.table(rows, ("seconds", "median", "of rounds")))


if __name__ == "__main__":
    main()
