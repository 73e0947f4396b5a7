"""The answer of `lowmem plan MODEL --json`, as plan.schema.json beside this file describes it."""

from __future__ import annotations

import dataclasses

from lowmem.memory import calibration, plan_text
from lowmem.memory.accountant import MemoryEstimate
from lowmem.memory.cell import TrainingSetup
from lowmem.memory.hardware import Gpu
from lowmem.memory.target_model import Target
from lowmem.memory.throughput import Plan, Speed


def bounds(value: float, factors: tuple[float, float, float]) -> dict[str, float]:
    """The 80 % interval around a prediction, and its middle."""
    return {key: value * factor for key, factor in zip(("low", "expected", "high"), factors)}


def as_json(model: Target, cell: TrainingSetup, gpu: Gpu, found: dict[str, Plan]) -> dict:
    """Everything as plain values: bytes, seconds, tokens per second."""

    def memory(of: MemoryEstimate) -> dict:
        found = {"peak_bytes": of.peak, "parts": of.parts, "most": of.most, "phase": of.phase, "host_bytes": of.host}
        return found | {"card_bytes": bounds(of.peak, calibration.CARD)}

    def pace(rate: Speed) -> dict:
        known = not plan_text.experts(model)
        interval = bounds(rate.tokens_per_s, calibration.SPEED) if known else None
        return {"tokens_per_s": rate.tokens_per_s, "tokens_per_s_interval": interval}

    rows = {}
    for name, plan in found.items():
        largest = None
        if plan.batch is not None:
            rate = plan.largest_speed
            largest = {"batch": plan.batch, **memory(plan.largest), "step_seconds": rate.seconds}
            largest |= {**pace(rate), "hours_per_1e9_tokens": rate.hours(plan_text.BUDGET)}
            largest |= {
                "kwh_per_1e9_tokens": rate.kilowatt_hours(plan_text.BUDGET, gpu, cell.gpus),
                "limits": rate.limits,
            }
        one = {**memory(plan.single), **pace(plan.single_speed)}
        rows[name] = {"fits": plan.batch is not None, "one_sequence": one, "largest": largest}
    settings = {
        key: value
        for key, value in dataclasses.asdict(cell).items()
        if key not in ("optimizer", "batch", "device", "official")
    }
    return {
        "schema": 1,
        "simulated": True,
        "model": {"name": model.name, "parameters": model.parameters(), "layers": model.depth},
        "gpu": {"name": gpu.name, "usable_bytes": int(gpu.usable), "calibrated": gpu.calibrated},
        "settings": settings,
        "optimizers": rows,
    }
