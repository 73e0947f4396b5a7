"""How long the GPU runs of a tier would take, by the performance model: what `lowmem plan --all` keeps for later plans.

Only training runs of language models can be modelled; everything else keeps the formula of estimate.py.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from lowmem.errors import Misuse
from lowmem.files import read_json, write_json
from lowmem.memory import hardware, target_model
from lowmem.memory.accountant import TrainingSetup, estimate_memory
from lowmem.memory.throughput import speed
from lowmem.pipeline import experiments, planning
from lowmem.pipeline.estimate import COSTS, costs

NUMBERS = ("lr", "betas", "eps", "weight_decay", "no_decay")  # settings that change no time


def seconds(run: dict, gpu: str) -> float | None:
    """Modelled seconds of one training run on one or more GPUs of a kind; None where the model says nothing.

    Several GPUs share each batch; what they tell each other is taken to hide behind backward.
    """
    config = run["config"]
    if (
        "train" not in config
        or config.get("model", {}).get("name") not in target_model.FILES
        or not run["resources"]["gpus"]
    ):
        return None
    train, devices = config["train"], max(run["resources"]["gpus"], config["train"].get("devices") or 1)
    batch = min(train.get("micro_batch_size") or train["batch_size"], -(-train["batch_size"] // devices))
    optimizer = {name: value for name, value in config["optimizer"].items() if name not in NUMBERS}
    precision = "mixed" if train.get("precision") == "bf16" else "fp32"
    cell = {"optimizer": optimizer, "batch": batch, "seq_len": train.get("seq_len", 1024), "precision": precision}
    try:
        stages = _stages(json.dumps([config["model"], cell], sort_keys=True), gpu)
    except Misuse:
        return None
    passes = -(-train["batch_size"] // (batch * devices))
    evaluations = train["steps"] // train["eval_every"] + 1 if train.get("eval_every") else 0
    step = passes * (stages["forward"] + stages["backward"]) + stages.get("update", 0.0)
    return train["steps"] * step + evaluations * train.get("eval_batches", 1) * stages["forward"]


@functools.cache
def _stages(key: str, gpu: str) -> dict[str, float]:
    """Seconds of forward, backward and update; runs that differ in rate or length share one account."""
    model, settings = json.loads(key)
    cell = TrainingSetup(**settings)
    return speed(estimate_memory(target_model.find(model), cell).work, cell, hardware.find(gpu)).stages


def model_costs(root: Path, tier: str, options: dict) -> None:
    """Add to costs.json what the performance model says of a tier's training runs on its GPU. Slow: seconds per model."""
    gpu = experiments.load_tier(root, tier)["estimate"].get("gpu")
    found = {}
    for job in planning.jobs(root, tier, options).values() if gpu else ():
        for run in job["runs"]:
            key = f"{tier}/{run['experiment']}/{run['variant']}"
            if key not in found and (modelled := seconds(run, gpu)) is not None:
                found[key] = {"seconds": round(modelled, 1), "gpu": gpu}
    loaded = read_json(root / COSTS) if (root / COSTS).is_file() else {}
    kept = {key: value for key, value in loaded.items() if not key.startswith(f"{tier}/")}
    write_json(root / COSTS, dict(sorted({**kept, **found, **costs(root)}.items())))
