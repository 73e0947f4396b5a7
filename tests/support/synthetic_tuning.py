"""Records of fine-tuning and of what belongs to LOMO's text: accuracies, losses and bytes with known differences."""

import random

from synthetic_losses import write as write_losses

from lowmem.pipeline import experiments

LEVEL = {"zero": 50.0, "lora": 60.0, "lomo": 63.0, "lora_lomo": 61.0, "prefix": 58.0}  # accuracy; others 62
PEAK = {"inference": 100, "lomo": 110, "lomo_norm": 111, "adalomo": 112, "adam_mini_backward": 150, "sgd": 200}
PEAK |= {"adam_mini": 250, "adamw": 400}
CHANGED = {"fp32": 0.6, "fp16": 0.2, "fp16_stochastic": 0.25, "bf16": 0.03, "bf16_stochastic": 0.05}


def write_everything(root, tier="laptop"):
    from synthetic import record

    for experiment in ("superglue", "lora_lomo"):
        write_accuracies(root, experiment, tier)
    for experiment in ("lomo_clipping", "adalomo_moments"):
        write_losses(root, experiment, tier)
    for run in experiments.runs(root, "sequential_steps", tier):
        width = run["config"]["model"]["n_embd"]
        lines = [{"alpha": a, "residual": 50 / width * a**2, "relative": a / width} for a in (1e-4, 1e-3, 1e-2, 3e-2)]
        noise = 1 + 0.01 * run["seed"]
        final = {
            "slope": 2.0,
            "curvature": 50 / width,
            "relative": noise * 3e-2 / width,
            "parameters": width**2,
            "loss": 3.0,
        }
        record(root, run, final, lines)
    for run in experiments.runs(root, "rounding", tier):
        share = CHANGED[run["variant"]] * (1 + 0.001 * run["seed"])
        record(
            root, run, {"changed": share, "val_loss": 1.0, "accuracy": 55.0, "most": 52.0, "first": 50.0, "step": 2}, []
        )
    for run in experiments.runs(root, "peak_memory", tier):
        bytes_ = PEAK[run["variant"]] * 10**6
        parts = {
            "parameters": 90 * 10**6,
            "gradients": 10**6,
            "optimizer_state": 0,
            "activations": 10**6,
            "temporaries": 0,
        }
        final = {"measured_bytes": bytes_, "weights_bytes": 90 * 10**6, "resident_bytes": None, "device": "cpu"}
        record(root, run, final, memory={**(parts if run["variant"] != "inference" else {}), "peak": bytes_})


def write_accuracies(root, experiment, tier="laptop", level=None):
    """Accuracy rises to the method's level (level(run) where given), equal seeds share their noise."""
    from synthetic import record

    for run in experiments.runs(root, experiment, tier):
        name = run["variant"].split("-")[1]
        draw = random.Random(f"{run['variant'].split('-')[0]} {run['seed']}")
        end = (level(run) if level else LEVEL.get(run["axes"]["method"], 62.0)) + draw.uniform(-1, 1) + 0.01 * len(name)
        steps = run["config"]["train"]["steps"]
        lines = []
        for step in range(1, steps + 1):
            lines.append({"step": step, "examples": 8 * step, "train_loss": 0.3 + 2 / step, "grad_norm": 1.0})
            if step % run["config"]["train"]["eval_every"] == 0 or step == steps:
                lines[-1] |= {
                    "val_loss": 0.5,
                    "accuracy": end + (1.0 if step < steps else 0.0),
                    "most": 55.0,
                    "first": 50.0,
                }
        final = {"val_loss": 0.5, "accuracy": end, "most": 55.0, "first": 50.0, "step": steps, "examples": 8 * steps}
        record(root, run, final, lines or [{"step": 0, "examples": 0, **final}])
