"""Records of the experiments of memory and throughput, with numbers that are easy to follow."""

from synthetic import record

from lowmem.pipeline import archive, experiments

GIB = 2**30


def write_memory(root, tier: str) -> None:
    write_simulated(root, tier)
    write_accuracy(root, tier)
    write_equal_batch(root, tier)


def write_simulated(root, tier: str, batches: dict | None = None) -> None:
    """Every simulated cell: 40 GiB at the peak (AdamW 60), 1000 tokens/s per GPU and sequence."""
    for run in experiments.runs(root, "simulated", tier):
        name = run["config"]["optimizer"]["name"]
        settings = run["config"]["measure"]
        batch = settings.get("batch", 1)
        batch = (batches or {"adamw": 1}).get(name, 4) if batch == "largest" else batch
        peak = (60 if name == "adamw" else 40) * GIB
        usable = 22 * GIB if "3090" in settings["gpu"] else 78 * GIB
        wants_little = run["variant"].startswith("l2") and not run["variant"].startswith(("l2.13b.adamw", "l2.30b.sgd"))
        peak = 15 * GIB if wants_little else peak
        final = {
            "parameters": 6_738_415_616,
            "batch": batch,
            "fits": batch is not None and peak <= usable,
            "peak_bytes": peak,
            "phase": "update",
            "kept_activation_bytes": int((1.8 if settings.get("checkpointing") else 45) * GIB),
            "usable_bytes": usable,
            "host_bytes": 0,
            "tokens_per_s": 1000.0 * settings.get("gpus", 1) * (batch or 1),
            "step_seconds": 1.0,
        }
        parts = dict.fromkeys(("gradients", "activations", "communication", "temporaries"), GIB)
        parts |= {"parameters": 12 * GIB, "optimizer_state": peak - 16 * GIB if peak > 16 * GIB else 0, "peak": peak}
        record(root, run, final, memory=parts)


def write_accuracy(root, tier: str, error: float = 0.5) -> None:
    for i, run in enumerate(experiments.runs(root, "planner_accuracy", tier)):
        final = {"measured_bytes": 10**8, "predicted_bytes": int(10**8 * (1 + error / 100)), "error_percent": error}
        final |= {"phase": "update", "resident_bytes": None if i else 2 * 10**8, "layers_traced": [2, 3], "layers": 6}
        record(root, run, final)


def write_equal_batch(root, tier: str) -> None:
    """Adam-mini 1.05 x AdamW at equal batch and 1.5 x at the largest; one optimizer of which nothing fits."""
    for run in experiments.runs(root, "equal_batch", tier):
        labels = list(run["config"]["measure"]["optimizers"])
        final, curve = {}, []
        for kind, gain in (("equal", 1.05), ("largest", 1.5)):
            final[kind] = {}
            for label in labels:
                if kind == "largest" and label == "sgd":
                    final[kind][label] = dict.fromkeys(("batch", "peak_bytes", "tokens_per_s", "ratio"))
                    continue
                value = {"adam_mini": gain, "lomo_two_passes": 0.6, "adafactor": 0.8}.get(label, 1.0)
                ratio = {"value": value, "low": value - 0.02, "high": value + 0.02, "n": 4}
                final[kind][label] = {"batch": 4, "peak_bytes": 10**8, "tokens_per_s": 1000 * value, "ratio": ratio}
                curve += [
                    {"kind": kind, "label": label, "round": i, "tokens_per_s": 1000 * value + i} for i in range(4)
                ]
        record(root, run, {**final, "cap_bytes": 10**9}, curve)


def write_explorer(root):
    """Synthetic cells: AdamW needs 60 GiB, every other optimizer 20."""
    for run in experiments.runs(root, "explorer", "laptop"):
        peak = (60 if run["config"]["optimizer"]["name"] == "adamw" else 20) * 2**30
        usable = 23 * 2**30 if "3090" in run["variant"] or "4090" in run["variant"] else 79 * 2**30
        final = {"batch": 1, "fits": peak <= usable, "peak_bytes": peak, "tokens_per_s": 1234.0}
        parts = {"parameters": peak / 2, "gradients": 0, "optimizer_state": peak / 4, "activations": peak / 4}
        record(root, run, final, memory={**parts, "communication": 0, "temporaries": 0, "peak": peak})
    archive.keep(root, "laptop/explorer")
