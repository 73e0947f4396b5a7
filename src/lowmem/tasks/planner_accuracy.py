"""The accountant's peak against the allocator's, for a training step that this machine can run.

measure: {batch, seq_len, precision, checkpointing, device: cpu | cuda, snapshot: whether a GPU's allocations are kept}.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lowmem.memory import measured_peak, target_model
from lowmem.memory.accountant import TrainingSetup, estimate_memory
from lowmem.training import machine


def measure(config: dict, seed: int, root: Path) -> dict:
    """metrics.final: {measured_bytes, predicted_bytes, error_percent, phase, resident_bytes, parameters}.

    measured_bytes: torch.profiler's allocator events, or torch.cuda's peak. resident_bytes: growth of the process's
    peak resident memory, which holds what PyTorch's allocator does not see and what it gives back late.
    """
    settings = dict(config["measure"])
    device, keep = machine.measuring_device(settings), settings.pop("snapshot", False)
    model = target_model.find(config["model"])
    cell = TrainingSetup(optimizer=config["optimizer"], device="gpu" if device == "cuda" else "cpu", **settings)
    predicted = estimate_memory(model, cell)
    with measured_peak.snapshot(root / "results" / "snapshot.pickle" if keep else None):
        peak, resident = measured_peak.peak_bytes(model, cell, device)
    final = {
        "measured_bytes": peak,
        "predicted_bytes": predicted.peak,
        "error_percent": 100 * (predicted.peak / peak - 1),
        "phase": predicted.phase,
        "resident_bytes": resident,
        "layers_traced": list(predicted.depths),
        "layers": model.depth,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    return {"metrics": {"final": final}, "memory": {**predicted.parts, "peak": peak}}
