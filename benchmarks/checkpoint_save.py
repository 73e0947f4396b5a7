"""What a checkpoint's safety costs: saving as training does, against a plain torch.save of the same state.

    python benchmarks/checkpoint_save.py --gigabytes 1 --rounds 5

In pairs, one after the other in each round, in one folder. plain: torch.save into the file. synced: the same, and wait for the
disk. ours: training/checkpoint.py, which writes beside the file, hashes meanwhile in a second thread, waits for the disk and
renames. Without a second core the hash cannot hide behind the write; without the wait, plain's bytes may still be in memory.
"""

import argparse
import os
import tempfile
from pathlib import Path

import timing
import torch

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
        plain, ours = Path(place) / "plain.pt", Path(place) / "ours"

        def synced() -> None:
            torch.save(held, plain)
            with open(plain, "rb") as file:
                os.fsync(file.fileno())

        steps = {
            "plain": lambda: torch.save(held, plain),
            "synced": synced,
            "ours": lambda: checkpoint.save(ours, 1, held),
        }
        seconds = in_turn(steps, arguments.rounds, warmup=1)
        size = plain.stat().st_size
    rows = []
    for base in ("plain", "synced"):
        middle, low, high = timing.ratios(seconds, "ours", base)
        rows.append((f"ours / {base}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}"))
    cores = len(os.sched_getaffinity(0))
    busy = ", busy machine" if arguments.busy else ""
    print(f"{timing.machine()}; {cores} of them for this; {size / 1e9:.2f} GB, {arguments.rounds} rounds{busy}")
    print(", ".join(f"{name} {sorted(times)[len(times) // 2]:.2f} s" for name, times in seconds.items()))
    print(timing.table(rows, ("seconds", "median", "of rounds")))


if __name__ == "__main__":
    main()
