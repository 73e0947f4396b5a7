"""Records of vision, diffusion and graph runs: metrics with a known offset for each optimizer, and samples."""

import random

import numpy as np

from lowmem.pipeline import experiments
from lowmem.pipeline.record import write_arrays

EXPERIMENTS = ("graphs", "resnet", "vision_transformers", "ddpm", "dit")
POINTS = {"adamw": 0.0, "adam_mini": 0.2, "adam_mini_neuron": -0.1}  # points of accuracy behind, and per cent of loss
STEPS = (0.25, 0.5, 0.75, 1.0)


def write_everything(root, tier="laptop", points=None):
    """Records of every run. points: {optimizer: how far behind AdamW}."""
    for experiment in EXPERIMENTS:
        write(root, experiment, tier, points)


def write(root, experiment, tier="laptop", points=None):
    from synthetic import record

    for run in experiments.runs(root, experiment, tier):
        lines = curve(run, (points or POINTS)[run["variant"].split("-")[1]])
        final = dict(lines[-1])
        if experiment == "graphs":
            final |= {"isolated_nodes": 0}
        arrays = None
        if run["config"]["task"] == "diffuse":
            behind = (points or POINTS)[run["variant"].split("-")[1]]
            if run["config"]["measure"].get("classifier"):
                quality = {
                    "frechet": 30 * (1 + behind / 100) + run["seed"],
                    "frechet_floor": 0.5,
                    "class_score": 5 - behind,
                }
                final |= quality
            shape = (16, 8, 8, 1)
            samples = np.random.default_rng(run["seed"]).integers(0, 256, shape).astype(np.uint8)
            arrays = write_arrays(root / "results" / run["tier"] / run["id"], {"samples": samples})
        record(root, run, final, lines, arrays=arrays)


def curve(run, behind):
    """An evaluation before training and one at each quarter; seeds differ by one point, with noise of their own."""
    steps, noise = run["config"]["train"]["steps"], random.Random(run["id"])
    unit = "epochs" if run["experiment"] == "graphs" else "images"
    lines = [{"step": 0, unit: 0, "val_loss": 3.0, "val_accuracy": 0.1, "test_accuracy": 0.1}]
    for part in STEPS:
        off = behind + 0.01 * noise.random()
        accuracy = 0.6 + 0.2 * part - 0.01 * run["seed"] - off / 100
        loss = (1.5 - part) * (1 + 0.01 * run["seed"]) * (1 + off / 100)
        step = round(part * steps)
        line = {"step": step, unit: step * 32, "train_loss": loss, "val_loss": loss}
        lines.append({**line, "val_accuracy": accuracy, "test_accuracy": accuracy + 0.01})
    return lines
