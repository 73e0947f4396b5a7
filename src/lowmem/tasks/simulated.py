"""A training step on GPUs that are not here: peak memory by component and speed, by the accountant and its model.

measure: {gpu: key of memory/hardware.py, batch: sequences per GPU or "largest", seq_len, precision, attention,
checkpointing, gpus, zero, tensor_parallel, offload}; see TrainingSetup in memory/cell.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lowmem.errors import refuse_unknown
from lowmem.memory import hardware, target_model
from lowmem.memory.accountant import TrainingSetup, estimate_memory
from lowmem.memory.throughput import plan, speed


def measure(config: dict, seed: int, root: Path) -> dict:
    """metrics.final: {parameters, batch (null: not even one sequence fits), fits, peak_bytes, kept_activation_bytes,
    usable_bytes, tokens_per_s, step_seconds, phase, limits, calibrated}; memory: bytes by component at the peak.

    With batch "largest" these belong to the largest batch that fits, or to one sequence where that does not fit.
    """
    settings = {"gpu": "a100-80gb", "batch": 1, **config["measure"]}
    known = {field.name for field in dataclasses.fields(TrainingSetup)} | {"gpu"}
    refuse_unknown(settings, known, "measure")
    gpu, batch = hardware.find(settings.pop("gpu")), settings.pop("batch")
    model = target_model.find(config["model"])
    cell = TrainingSetup(optimizer=config["optimizer"], **settings)
    if batch == "largest":
        found = plan(model, cell, gpu)
        batch, result = found.batch, found.largest or found.single
        rate = found.largest_speed or found.single_speed
    else:
        cell = dataclasses.replace(cell, batch=batch)
        result = estimate_memory(model, cell)
        rate = speed(result.work, cell, gpu)
    final = {
        "parameters": model.parameters(),
        "batch": batch,
        "fits": result.peak <= gpu.usable,
        "peak_bytes": result.peak,
        "phase": result.phase,
        "kept_activation_bytes": result.kept,
        "usable_bytes": int(gpu.usable),
        "host_bytes": result.host,
        "tokens_per_s": rate.tokens_per_s,
        "step_seconds": rate.seconds,
        "stage_seconds": rate.stages,
        "limits": rate.limits,
        "calibrated": gpu.calibrated,
        "simulated": True,
    }
    return {"metrics": {"final": final}, "memory": {**result.parts, "peak": result.peak}}
