"""Records of fine-tuning, reward models and ReMax: losses and rewards with a known offset for each optimizer."""

import random

import numpy as np

from lowmem.pipeline import experiments
from lowmem.pipeline.record import write_arrays

BEHIND = {"adamw": 0.0, "adam_mini": 0.004}  # nat of loss, and as much reward


def write_everything(root, tier="laptop", behind=None):
    """Records of every run. behind: {optimizer: how far behind AdamW}."""
    from synthetic import record

    for experiment in ("sft", "reward", "remax"):
        for run in experiments.runs(root, experiment, tier):
            off = (behind or BEHIND)[run["variant"].split("-")[1]]
            lines, arrays = curve(run, off), None
            final = {**lines[-1], "excluded": 3}
            if experiment == "reward":
                final["accuracy"] = 60.0
                hits = np.arange(50) % 5 < 3  # 60 %
                arrays = write_arrays(root / "results" / tier / run["id"], {"hits": hits.astype(np.float32)})
            record(root, run, final, lines, arrays=arrays)


def curve(run, off):
    """An evaluation at the start, where the optimizers are alike, in the middle and at the end."""
    draw, steps, lines = random.Random(run["id"]), run["config"]["train"]["steps"], []
    for step in sorted({0, steps // 2, steps}):
        part, noise = step / steps, 0.0002 * draw.random()
        line = {"step": step, "train_loss": 2.0} if step else {"step": step}
        if run["experiment"] == "remax":
            reward = 0.3 + part * (0.2 - off - noise) + 0.001 * (run["seed"] % 7)
            lines.append({**line, "prompts": 16 * step, "val_loss": -reward, "reward": reward, "kl": part})
        else:
            unit = "examples" if run["experiment"] == "sft" else "pairs"
            loss = 2.5 - part * (0.3 - off - noise) + 0.001 * (run["seed"] % 7)
            lines.append({**line, unit: 8 * step, "val_loss": loss, "accuracy": 60.0})
    return lines
