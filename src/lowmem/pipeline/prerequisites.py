"""The runs that a run starts from: pre-training before fine-tuning, a reward model before ReMax, networks that measure.

Each is an ordinary run with a record, checkpoints and a check for divergence, which keeps its final weights beside its
record (weights.safetensors). A configuration holds the whole configuration of what it starts from. An experiment's file
names it as {experiment, variant}; the first seed of that experiment is taken, for all seeds and optimizers, so that all
start alike. What has no name, as in a single RUN.json, is a run of `prerequisites` named by its hash.
"""

from lowmem.errors import Misuse, nearest
from lowmem.pipeline.experiments import STARTS, config_hash

NETWORKS = {"autoencoder": "autoencode", "resnet": "classify"}  # model of measure.classifier or latent: its task
PICTURES = ("augment", "pool", "pad_to", "crop")  # keys of `measure` for image preprocessing


def of(run: dict) -> dict[tuple[str, str], dict]:
    """{(key, inner key) of the configuration: the run whose weights it takes there}."""
    found = dict(run.get("after") or {})
    for place in STARTS:
        value = (run["config"].get(place[0]) or {}).get(place[1])
        if place not in found and isinstance(value, dict):
            if "task" in value:
                found[place] = unnamed_run(run, value)
            elif "steps" in value and place[0] == "measure":
                found[place] = unnamed_run(run, network(run["config"], value))
    return found


def every(runs: list[dict]) -> list[dict]:
    """All runs that these start from, directly or not, each once and behind those that it starts from itself."""
    found: dict[str, dict] = {}
    for run in runs:
        for before in of(run).values():
            found |= {one["id"]: one for one in [*every([before]), before] if one["id"] not in found}
    return list(found.values())


def experiments_of(runs: list[dict]) -> list[str]:
    """Other experiments whose runs these start from, in the order of their names."""
    before = {one["experiment"] for run in runs for one in of(run).values()}
    return sorted(before - {"prerequisites"})


def unnamed(runs: list[dict]) -> list[dict]:
    """Runs that these start from and that no experiment names."""
    return [run for run in every(runs) if run["experiment"] == "prerequisites"]


def unnamed_run(run: dict, config: dict) -> dict:
    """The run of a configuration that is part of another one, with the resources of that one."""
    known = config_hash({**config, "seed": 0})
    variant = f"{config['task']}-{known}"
    return {
        "id": f"prerequisites/{variant}/seed0",
        "experiment": "prerequisites",
        "variant": variant,
        "seed": 0,
        "tier": run["tier"],
        "config": config,
        "config_hash": known,
        "resources": run["resources"],
        "keep_weights": True,
    }


def network(config: dict, settings: dict) -> dict:
    """The configuration that trains a network of measure.classifier or measure.latent.

    settings: {model: {name, ...}, steps, batch_size, lr}. By AdamW on the run's own pictures, in fp32, with a warm-up over
    the first twentieth and a cosine to 0.
    """
    name = settings["model"]["name"]
    if name not in NETWORKS:
        raise Misuse(f"no reference network of kind {name!r}{nearest(name, NETWORKS)}")
    changes = {key: value for key, value in config["measure"].items() if key in PICTURES}
    return {
        "task": NETWORKS[name],
        "data": config["data"],
        "model": settings["model"],
        "optimizer": {"name": "adamw", "lr": settings["lr"]},
        "schedule": {"name": "cosine", "warmup_steps": max(1, settings["steps"] // 20)},
        "train": {"steps": settings["steps"], "batch_size": settings["batch_size"], "eval_first": False},
        "measure": {**changes, "scale": "signed"},
    }
