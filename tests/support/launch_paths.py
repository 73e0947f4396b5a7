"""The distinct ways in which a tier's jobs start and move weights about, and a toy run for each.

Two runs take the same path when they share everything that decides which code starts, shards, loads and saves: task, family
of models, number of devices, whether gradients are used inside backward, adapter, and where the weights come from.
"""

from pathlib import Path

from lowmem.files import read_yaml
from lowmem.pipeline import planning

INSIDE_BACKWARD = ("lomo", "adalomo")


def paths(root: Path, tier: str) -> dict[tuple, dict]:
    """{path: the first run that takes it} of everything that an exhibit schedules in a tier."""
    found: dict[tuple, dict] = {}
    for job in planning.jobs(root, tier, {}).values():
        for run in job["runs"]:
            found.setdefault(path_of(root, run["config"]), run)
    return found


def path_of(root: Path, config: dict) -> tuple:
    """(task, model, devices, where gradients are used, adapter, weights, reward)."""
    model, optimizer, measure = (config.get(key) or {} for key in ("model", "optimizer", "measure"))
    inside = optimizer.get("name") in INSIDE_BACKWARD or "backward" in optimizer
    place = "backward and step" if "beside" in optimizer else "backward" if inside else "step"
    adapter = model.get("adapter") or {}
    frozen = adapter.get("kind") and (adapter["kind"], adapter.get("freeze", True))
    train = config.get("train") or {}
    devices, place = train.get("devices") or 1, place if train.get("steps", 1) else "no step"
    weights = source(root, model.get("pretrained"))
    return config["task"], model.get("name"), devices, place, frozen, weights, reward(measure.get("reward"))


def source(root: Path, pretrained) -> str:
    """Where weights come from: fresh, a dataset, a checkpoint's folder or the hub, or an earlier training."""
    if isinstance(pretrained, dict):
        return f"after {pretrained['task']}"
    if pretrained is None:
        return "fresh"
    return "dataset" if pretrained in read_yaml(root / "data/sources.yaml") else "checkpoint"


def reward(settings) -> str | None:
    return None if not isinstance(settings, dict) else "rule" if "share" in settings else "learned"


# -- toys --------------------------------------------------------------------------------------------------------------

SHAPES = {  # of models that start fresh
    "gpt2": {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 64, "block_size": 32},
    "llama": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_hidden": 24, "vocab_size": 64, "block_size": 32},
}
DATA = {
    "pretrain": {"dataset": "tiny", "source": "package", "tokenizer": "byte"},
    "superglue": {"dataset": "superglue_wic", "source": "package"},
    "rounding": {"dataset": "superglue_wic", "source": "package"},
}
ALIGNED = ("sft", "reward", "remax")
TALK = {"dataset": "talk", "source": "package"}
MEASURE = {
    "superglue": {"train_examples": 16, "val_examples": 4},
    "rounding": {"device": "cpu"},
    "sft": {"longest": 48, "train_examples": 16, "val_examples": 4},
    "reward": {"longest": 48, "train_examples": 16, "val_examples": 4},
    "remax": {"longest": 48, "answer_tokens": 4, "eval_prompts": 4, "part": "instructions"},
}


def toy(config: dict, checkpoint: Path, world: int) -> dict:
    """The configuration with everything small and nothing else changed: model, data, steps, batch, number of devices.

    What a device does in one step stays: one micro-batch, or two where there were more.
    """
    task, train, model = config["task"], config["train"], dict(config["model"])
    parts = train["batch_size"] // (train.get("micro_batch_size") or train["batch_size"])
    passes = min(2, parts // (train.get("devices") or 1))
    small = {"steps": min(2, train["steps"]), "batch_size": world * passes, "micro_batch_size": 1, "devices": world}
    small |= {"eval_every": 2, "checkpoint_every": 1 if train.get("checkpoint_every") else None, "compile": False}
    small |= {"eval_batches": 1} if "eval_batches" in train else {}
    small |= {"seq_len": 16 if task == "pretrain" else 200} if "seq_len" in train else {}
    if isinstance(model.get("pretrained"), dict):
        model["pretrained"] = toy(model["pretrained"], checkpoint, world)
    elif model.get("pretrained"):
        model["pretrained"] = str(checkpoint)
    else:
        model |= SHAPES[model["name"]]
    measure = {**(config.get("measure") or {}), **MEASURE.get(task, {})}
    if isinstance(measure.get("reward"), dict) and "task" in measure["reward"]:
        measure["reward"] = toy(measure["reward"], checkpoint, world)
    changed = {"data": DATA.get(task, TALK), "model": model, "train": {**train, **small}}
    return {**config, **changed, **({"measure": measure} if measure else {})}
