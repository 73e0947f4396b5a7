"""How long the GPU runs of a tier would take, by the performance model: what `lowmem plan --all` keeps for later plans.

Only training runs of language models can be modelled; everything else keeps the formula of estimate.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json

from lowmem.errors import Misuse
from lowmem.memory import hardware, target
from lowmem.memory.accountant import Cell, account
from lowmem.memory.throughput import speed


def seconds(run: dict, gpu: str) -> float | None:
    """Modelled seconds of one training run on one or more GPUs of a kind; None where the model says nothing."""
    config = run["config"]
    if "train" not in config or config.get("model", {}).get("name") not in target.FILES or not run["resources"]["gpus"]:
        return None
    train, devices = config["train"], max(run["resources"]["gpus"], config["train"].get("devices") or 1)
    micro = min(train.get("micro_batch_size") or train["batch_size"], -(-train["batch_size"] // devices))
    cell = {
        "batch": max(micro, 1),
        "seq_len": train.get("seq_len", 1024),
        "precision": "mixed" if train.get("precision") == "bf16" else "fp32",
        "gpus": devices,
    }
    try:
        stages = _stages(json.dumps([config["model"], config["optimizer"], cell], sort_keys=True), gpu)
    except (Misuse, RuntimeError, NotImplementedError):
        return None
    passes = -(-train["batch_size"] // (cell["batch"] * devices))
    evaluations = train["steps"] // train["eval_every"] + 1 if train.get("eval_every") else 0
    forward = stages.get("forward", 0.0)
    step = passes * (forward + stages.get("backward", 0.0)) + stages.get("update", 0.0)
    return train["steps"] * step + evaluations * train.get("eval_batches", 1) * forward


@functools.cache
def _stages(key: str, gpu: str) -> dict[str, float]:
    """Seconds of forward, backward and update; runs that differ in rate or length share one account."""
    model, optimizer, settings = json.loads(key)
    optimizer = {name: value for name, value in optimizer.items() if name not in ("lr",)}
    cell = Cell(optimizer={**optimizer, "lr": 1e-4}, **settings)
    found = account(target.find(model), dataclasses.replace(cell, zero=3))
    return speed(found.work, cell, hardware.find(gpu)).stages
