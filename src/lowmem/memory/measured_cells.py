"""Training steps that other people measured (data/published/training_cells.yaml), and what the planner says of each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from lowmem.errors import Misuse, nearest
from lowmem.files import read_yaml
from lowmem.memory import hardware, target_model
from lowmem.memory.accountant import account
from lowmem.memory.adapters import Adapters
from lowmem.memory.cell import Cell
from lowmem.memory.throughput import speed

FILE = "data/published/training_cells.yaml"
SETTINGS = {field.name for field in dataclasses.fields(Cell)} | {"gpu", "loss", "caches_bytes", "seen"}
ABOUT = {"id", "source", "model", "measured", "unknown", "not_modelled"}
UNITS = {"peak_bytes": 1, "peak_gib": 2**30, "peak_gb": 1e9, "peak_percent_of_80gb": None}
CARD = 79.25 * 2**30  # bytes of the card whose share torchtitan prints


def read(root: Path) -> dict:
    """The file, checked: every key is known, every id stands once, every source and model is described."""
    found = read_yaml(root / FILE)
    ids = [cell["id"] for cell in found["cells"]]
    for cell in found["cells"]:
        for key in cell.keys() - SETTINGS - ABOUT:
            raise Misuse(f"{FILE}: {cell['id']}: unknown key {key!r}{nearest(key, SETTINGS | ABOUT)}")
        for key, known in (("source", found["sources"]), ("model", {*found["models"], "llama2-7b"})):
            if cell[key] not in known:
                raise Misuse(f"{FILE}: {cell['id']}: {key} {cell[key]!r} is not described")
    for twice in {name for name in ids if ids.count(name) > 1}:
        raise Misuse(f"{FILE}: {twice} stands there twice")
    return found


def held_out(cell: dict) -> bool:
    """Whether no constant may be set on it: a rule on its id, fixed before any prediction."""
    return not cell.get("seen") and hashlib.sha256(cell["id"].encode()).digest()[0] % 2 == 1


def measured_bytes(cell: dict) -> float:
    """Its measured peak."""
    (key,) = UNITS.keys() & cell["measured"].keys()
    value = cell["measured"][key]
    return value / 100 * CARD if UNITS[key] is None else value * UNITS[key]


def predict(models: dict, measured: dict) -> dict:
    """{peak_bytes, tokens_per_s} of a cell; with unknown settings lists [lowest, highest] of both, over their ranges; or
    {reason}."""
    if "not_modelled" in measured:
        return {"reason": measured["not_modelled"]}
    unknown = measured.get("unknown", {})
    if not unknown:
        return one(models, measured)
    ((key, ends),) = unknown.items()
    found = [one(models, {**measured, key: value}) for value in ends]
    return {key: sorted(x[key] for x in found) if None not in [x[key] for x in found] else None for key in found[0]}


def one(models: dict, measured: dict) -> dict:
    """Peak and speed of a cell whose settings are known."""
    settings = {
        key: value for key, value in measured.items() if key not in ABOUT | {"gpu", "loss", "caches_bytes", "seen"}
    }
    name = settings.pop("optimizer")
    official = name.startswith("official_")
    if adapters := settings.pop("adapters", None):
        targets = adapters["targets"]
        settings["adapters"] = Adapters(
            **{**adapters, "targets": targets if isinstance(targets, str) else tuple(targets)}
        )
    cell = Cell(optimizer={"name": name.removeprefix("official_")}, official=official, **settings)
    with tempfile.TemporaryDirectory() as folder:
        target = target_of(measured["model"], models, folder)
        target = dataclasses.replace(target, loss=LOSSES.get(measured.get("loss"), target.loss))
        found = account(target, cell)
    rate = None
    if "gpu" in measured and "tokens_per_s" in measured["measured"]:
        rate = speed(found.work, cell, hardware.find(measured["gpu"])).tokens_per_s
    return {"peak_bytes": found.peak + measured.get("caches_bytes", 0), "tokens_per_s": rate}


def target_of(name: str, models: dict, folder: str) -> target_model.Target:
    """A model of the file by its configuration, or one of this package."""
    if name not in models:
        return target_model.find(name)
    Path(folder, "config.json").write_text(json.dumps(models[name]))
    return target_model.find(folder)


def _logits(model, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def _shifted(model, tokens: Tensor) -> Tensor:
    """transformers 4 before 4.46: all logits in fp32, then a copy without the last."""
    logits = _logits(model, tokens).float()
    return F.cross_entropy(logits[..., :-1, :].contiguous().flatten(0, 1), tokens[..., 1:].flatten())


def _upcast(model, tokens: Tensor) -> Tensor:
    """torchtune: all logits in fp32, the targets shifted."""
    return F.cross_entropy(_logits(model, tokens).float().flatten(0, 1), tokens.flatten())


def _chunked(model, tokens: Tensor) -> Tensor:
    """litgpt: part after part, in 16 bits."""
    return F.cross_entropy(_logits(model, tokens).flatten(0, 1), tokens.flatten())


LOSSES = {"shifted": _shifted, "upcast": _upcast, "chunked": _chunked}


def error(predicted: float, measured: float) -> float:
    """Relative error of a prediction in per cent."""
    return 100 * (predicted / measured - 1)
