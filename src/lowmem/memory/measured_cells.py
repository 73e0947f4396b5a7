"""What the planner says of training steps that other people measured: `python -m lowmem.memory.measured_cells` writes it down.

The steps are listed in data/published/training_cells.yaml; training_cells.py compares both.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from importlib import metadata
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from lowmem.errors import Misuse, nearest
from lowmem.files import read_yaml, write_text
from lowmem.memory import hardware, target_model
from lowmem.memory.accountant import estimate_memory
from lowmem.memory.adapters import Adapters
from lowmem.memory.cell import TrainingSetup
from lowmem.memory.throughput import speed
from lowmem.memory.training_cells import FILE, PREDICTED, UNITS

SETTINGS = {field.name for field in dataclasses.fields(TrainingSetup)} | {"gpu", "loss", "caches_bytes", "seen"}
NEEDED = {"batch", "seq_len", "precision"}
ABOUT = {"id", "source", "model", "measured", "unknown", "not_modelled", "predicted"}


def check(cells: dict) -> None:
    """Misuse for a key that means nothing, a duplicate id, a model or source that is not described."""
    ids = [cell["id"] for cell in cells["cells"]]
    for cell in cells["cells"]:
        if ids.count(cell["id"]) > 1:
            raise Misuse(f"{FILE}: {cell['id']} is listed twice")
        if cell["source"] not in cells["sources"]:
            raise Misuse(f"{FILE}: {cell['id']}: source {cell['source']!r} is not described")
        for key in NEEDED - cell.keys() - cell.get("unknown", {}).keys():
            raise Misuse(
                f"{FILE}: {cell['id']}: its {key} is missing; where the source does not say, give its range as unknown"
            )
        if len(UNITS.keys() & cell["measured"].keys()) != 1:
            raise Misuse(f"{FILE}: {cell['id']}: measured needs one of {', '.join(UNITS)}")
        for key in cell.keys() - SETTINGS - ABOUT:
            raise Misuse(f"{FILE}: {cell['id']}: unknown key {key!r}{nearest(key, SETTINGS | ABOUT)}")
        if cell["model"] not in {*cells["models"], "llama2-7b"}:
            raise Misuse(f"{FILE}: {cell['id']}: model {cell['model']!r} is not described")


def predict(models: dict, measured: dict) -> dict:
    """{peak_bytes, tokens_per_s} of a cell; with unknown settings lists [lowest, highest] of both, over their ranges; or
    {reason}."""
    if "not_modelled" in measured:
        return {"reason": measured["not_modelled"]}
    unknown = measured.get("unknown", {})
    if not unknown:
        return one(models, measured)
    cases = itertools.product(*unknown.values())
    found = [one(models, {**measured, **dict(zip(unknown, values))}) for values in cases]
    return {key: ends([x[key] for x in found]) for key in found[0]}


def ends(values: list[float | None]) -> list[float] | None:
    """The least and the most; None where one of them is not known."""
    return None if None in values else [min(values), max(values)]


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
    cell = TrainingSetup(optimizer={"name": name.removeprefix("official_")}, official=official, **settings)
    with tempfile.TemporaryDirectory() as folder:
        target = target_of(measured["model"], models, folder)
        target = dataclasses.replace(target, loss=LOSSES.get(measured.get("loss"), target.loss))
        found = estimate_memory(target, cell)
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


def write(root: Path) -> Path:
    """Predict every cell anew."""
    cells = read_yaml(root / FILE)
    check(cells)
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    head = {"schema": 1, "versions": versions, "held_out": cells["held_out"], "sources": cells["sources"]}
    lines = ["# Written by python -m lowmem.memory.measured_cells from training_cells.yaml; not by hand."]
    lines += [f"{key}: {json.dumps(value)}" for key, value in head.items()]
    lines += ["cells:"]
    lines += [f"  - {json.dumps({**cell, 'predicted': predict(cells['models'], cell)})}" for cell in cells["cells"]]
    write_text(root / PREDICTED, "\n".join(lines) + "\n")
    return root / PREDICTED


if __name__ == "__main__":
    print(write(Path.cwd()))
