"""How many weights change in a step of LOMO when weights are stored in 32 or 16 bits, and what that does to learning.

An update smaller than half a unit in the last place of its weight is lost. LOMO keeps no fp32 copy, so this decides how
much of a step arrives (not in the paper). The workload is the task superglue.
"""

from pathlib import Path

import torch

from lowmem.errors import Misuse
from lowmem.optim._factory import make
from lowmem.tasks import superglue
from lowmem.training import machine
from lowmem.training.update import Updates


def measure(config: dict, seed: int, root: Path) -> dict:
    """Train by config["optimizer"], which updates inside backward, for train.steps steps, weights in model.dtype.

    curve: {step, lr, train_loss, changed: share of weights that differ after the step}. metrics.final: {changed (mean over
    the steps with a rate above 0), val_loss, accuracy, first, most (see superglue.score), step}.
    """
    asked = dict(config.get("measure") or {})
    device = machine.measuring_device(asked)
    task = superglue.build({**config, "measure": asked}, seed, root, device)
    optimizer = make(task.model, **config["optimizer"])
    if not hasattr(optimizer, "backward"):
        raise Misuse("task rounding needs an optimizer that updates inside backward, such as lomo")
    train = {**config["train"], "precision": "bf16"}  # all weights compute in bf16, so that only their storage differs
    updates = Updates(task, optimizer, train, config.get("schedule"), device)
    curve, weights = [], [p for p in task.model.parameters() if p.requires_grad]
    for step in range(1, train["steps"] + 1):
        before = [p.detach().clone() for p in weights]
        loss = updates.make_finite(step)
        changed = sum((p != old).sum().item() for p, old in zip(weights, before, strict=True))
        row = {"step": step, "lr": optimizer.param_groups[0]["lr"], "train_loss": loss}
        curve.append({**row, "changed": changed / sum(p.numel() for p in weights)})
    task.model.eval()
    with torch.no_grad(), updates.autocast():
        scores = task.evaluate(task.model)
    moved = [row["changed"] for row in curve if row["lr"] > 0]  # a linear schedule ends with a rate of 0
    final = {**scores, "changed": sum(moved) / len(moved), "step": train["steps"]}
    return {"metrics": {"final": final}, "curve": curve, "inputs": task.inputs}
