"""Training steps that other people measured (data/published/training_cells.yaml) beside what was predicted; without PyTorch.

measured_cells.py predicts them into data/published/training_cells_predicted.yaml.
"""

from __future__ import annotations

import hashlib
import statistics
from pathlib import Path

from lowmem.files import read_yaml

FILE = "data/published/training_cells.yaml"
PREDICTED = "data/published/training_cells_predicted.yaml"
UNITS = {"peak_bytes": 1, "peak_gib": 2**30, "peak_gb": 1e9, "peak_percent_of_80gb": None}
CARD = 79.25 * 2**30  # bytes of the card whose share torchtitan prints
EXPERTS = "mixtral"  # its speed says nothing: transformers 4 ran experts one after the other
SAME = 1e-4  # between predictions that are one and the same, of a batch split otherwise or of other packing
KINDS = ("held out", "tuning", "setting unknown", "not modelled")


def read(root: Path) -> dict:
    """Sources, and the cells with their predictions."""
    return read_yaml(root / PREDICTED)


def held_out(cell: dict) -> bool:
    """Whether no constant may be set on it: a rule on its id, fixed before any prediction."""
    return not cell.get("seen") and hashlib.sha256(cell["id"].encode()).digest()[0] % 2 == 1


def kind(cell: dict) -> str:
    """One of KINDS."""
    if "reason" in cell["predicted"]:
        return "not modelled"
    if "unknown" in cell:
        return "setting unknown"
    return "held out" if held_out(cell) else "tuning"


def measured_bytes(cell: dict) -> float:
    """Its measured peak."""
    (key,) = UNITS.keys() & cell["measured"].keys()
    value = cell["measured"][key]
    return value / 100 * CARD if UNITS[key] is None else value * UNITS[key]


def error(cell: dict) -> float:
    """Predicted over measured peak, less 1, in per cent."""
    return 100 * (cell["predicted"]["peak_bytes"] / measured_bytes(cell) - 1)


def speed_factor(cell: dict) -> float | None:
    """Measured over predicted tokens per second; None where either is not known."""
    rate = cell["predicted"].get("tokens_per_s")
    measured = cell["measured"].get("tokens_per_s")
    return measured / rate if rate and measured and EXPERTS not in cell["model"] else None


def card_factor(cell: dict) -> float | None:
    """Memory in use on the card, or reserved by the allocator, over the predicted peak."""
    measured = cell["measured"]
    used = measured.get("used_mib", 0) * 2**20 or measured.get("reserved_gib", 0) * 2**30
    return used / cell["predicted"]["peak_bytes"] if used else None


def summary(found: dict) -> dict[str, dict]:
    """{kind: {cells, median, worst}} of the two kinds with known settings, and of both together as "known"."""
    groups = {name: [cell for cell in found["cells"] if kind(cell) == name] for name in KINDS[:2]}
    groups["known"] = groups["held out"] + groups["tuning"]
    result = {}
    for name, cells in groups.items():
        errors = [abs(error(cell)) for cell in cells]
        result[name] = {"cells": len(cells), "median": statistics.median(errors), "worst": max(errors)}
    return result


def repeated(found: dict) -> list[str]:
    """Ids of the cells held out whose predicted peak is that of a tuning cell of the same model: they test nothing new."""
    known = [cell for cell in found["cells"] if kind(cell) in KINDS[:2]]
    tuning = [(cell["model"], cell["predicted"]["peak_bytes"]) for cell in known if not held_out(cell)]
    return [
        cell["id"]
        for cell in known
        if held_out(cell)
        and any(
            model == cell["model"] and abs(cell["predicted"]["peak_bytes"] / peak - 1) < SAME for model, peak in tuning
        )
    ]


def hits(found: dict, factor, low: float, high: float) -> tuple[int, int]:
    """(how many of the cells held out lie from low to high, how many there are)."""
    factors = [factor(cell) for cell in found["cells"] if kind(cell) == "held out"]
    factors = [x for x in factors if x is not None]
    return sum(low <= x <= high for x in factors), len(factors)
