"""Time of training steps, optimizer by optimizer: at one batch for all, and at the largest batch under a memory cap.

All of them run in turn within one process, round after round, so that ratios are taken within a round. The largest
batch is what the accountant says fits under the cap; the peak at that batch is then measured, as planner_accuracy does.
measure: {optimizers: {label: settings}, base: label, batch, seq_len, precision, cap_mb, rounds, device, largest_most}.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import statistics
from pathlib import Path

from lowmem.analysis import stats
from lowmem.errors import Misuse, nearest
from lowmem.memory import measured_peak, target_model
from lowmem.memory.accountant import TrainingSetup, estimate_memory
from lowmem.memory.throughput import largest_batch


def measure(config: dict, seed: int, root: Path) -> dict:
    """metrics.final: per label {batch, peak_bytes, tokens_per_s, ratio: {value, low, high}} under "equal" and "largest".

    ratio: tokens per second over those of the base in the same round, mean of rounds with a 95 % interval; tokens_per_s
    itself is the median of rounds. peak_bytes: measured. A label of which not one sequence fits has batch null under
    "largest". curve: a line per label and round.
    """
    settings = {"rounds": 10, "device": "cpu", "precision": "fp32", "largest_most": 64, **config["measure"]}
    optimizers, base = settings["optimizers"], settings["base"]
    if base not in optimizers:
        raise Misuse(f"measure.base {base!r} is not a key of measure.optimizers{nearest(base, optimizers)}")
    model, device = target_model.find(config["model"]), settings["device"]
    cells = {
        label: TrainingSetup(
            optimizer={"lr": 1e-4, **optimizer},
            batch=settings["batch"],
            seq_len=settings["seq_len"],
            precision=settings["precision"],
            device="gpu" if device == "cuda" else "cpu",
        )
        for label, optimizer in optimizers.items()
    }
    largest = {label: _largest(model, cell, settings) for label, cell in cells.items()}
    final, curve = {}, []
    for kind, batches in (("equal", dict.fromkeys(cells, settings["batch"])), ("largest", largest)):
        chosen = {label: dataclasses.replace(cells[label], batch=n) for label, n in batches.items() if n}
        peaks = {label: measured_peak.peak_bytes(model, cell, device)[0] for label, cell in chosen.items()}
        steps = {label: measured_peak.build(model, cell, device) for label, cell in chosen.items()}
        seconds = measured_peak.in_turn(steps, settings["rounds"])
        del steps
        gc.collect()
        speeds = {k: [chosen[k].batch * chosen[k].seq_len / s for s in found] for k, found in seconds.items()}
        curve += [
            {"kind": kind, "label": label, "round": i, "tokens_per_s": value}
            for label, values in speeds.items()
            for i, value in enumerate(values)
        ]
        final[kind] = {label: _row(label, base, batches[label], peaks, speeds) for label in cells}
    final["cap_bytes"] = int(settings["cap_mb"] * 1e6)
    return {"metrics": {"final": final}, "curve": curve}


def _largest(model, cell: TrainingSetup, settings: dict) -> int | None:
    @functools.cache
    def of(batch: int):
        return estimate_memory(model, dataclasses.replace(cell, batch=batch))

    return largest_batch(lambda batch: of(batch).peak, settings["cap_mb"] * 1e6, of(1).kept, settings["largest_most"])


def _row(label: str, base: str, batch: int | None, peaks: dict, speeds: dict) -> dict:
    if label not in speeds:
        return {"batch": None, "peak_bytes": None, "tokens_per_s": None, "ratio": None}
    speed = statistics.median(speeds[label])
    row = {"batch": batch, "peak_bytes": peaks[label], "tokens_per_s": speed, "ratio": None}
    if base in speeds:
        found = stats.estimate([a / b for a, b in zip(speeds[label], speeds[base])])
        row["ratio"] = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
    return row
