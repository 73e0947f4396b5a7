"""From configuration files to runs. Standard library and yaml only: Snakemake parses this at every call.

An experiment file states the paper's settings once, the axes that span its runs, and what each tier overlays:

    settings < tiers.<tier>.settings < one value of each axis, in the order the axes are written

A run is a plain dictionary {id, experiment, variant, axes, seed, tier, config, config_hash, resources, after, keep_weights};
after holds the runs that it starts from (prerequisites.py). Its variant names its point on the axes, by their values joined
by "-", and axes holds the same as {axis: value} (grids.py).
Everything that decides the result is in `config`, so its hash names the result.
"""

import copy
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from lowmem import optim
from lowmem.data.schemas import check
from lowmem.errors import Misuse, nearest
from lowmem.files import read_yaml
from lowmem.pipeline import grids, model_settings, rates


def find_root() -> Path:
    """The checkout that holds workflow/config: $LOWMEM_ROOT, else the current folder or a parent, else this file's."""
    if named := os.environ.get("LOWMEM_ROOT"):
        if not Path(named).is_dir():
            raise Misuse(f"LOWMEM_ROOT is {named}, which is not a folder; set it to a checkout, or unset it")
        return Path(named)
    here = Path.cwd()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / "workflow" / "config" / "tiers").is_dir():
            return folder
    raise Misuse("no workflow/config/tiers in this folder or above: run lowmem inside its checkout, or set LOWMEM_ROOT")


def tier_names(root: Path) -> list[str]:
    """All tiers, by the names of their files."""
    return sorted(path.stem for path in (root / "workflow/config/tiers").glob("*.yaml"))


def load_tier(root: Path, tier: str) -> dict:
    """The tier file as a dictionary: job granularity, machine, and which data stand in for the paper's.

    A tier that is `like` another takes that one's data for whatever it does not name itself, and that one's runs as they
    are for experiments that it does not change (see set_by).
    """
    if tier not in tier_names(root):
        raise Misuse(f"unknown tier {tier!r}{nearest(tier, tier_names(root))}")
    path = root / f"workflow/config/tiers/{tier}.yaml"
    loaded = read_yaml(path)
    check(root, loaded, "tier", path)
    if "like" in loaded:
        parent = root / f"workflow/config/tiers/{loaded['like']}.yaml"
        if loaded["like"] == tier or (parent.is_file() and "like" in read_yaml(parent)):
            raise Misuse(f"{path}: like: {loaded['like']}: name a tier that is like no other")
        loaded["data"] = {**load_tier(root, loaded["like"]).get("data", {}), **loaded.get("data", {})}
    return loaded


def set_by(root: Path, experiment: str, tier: str) -> str:
    """The tier whose settings and data an experiment has in a tier: this one's, or those of the tier that it is `like`.

    Misuse where an experiment has no runs in the tier.
    """
    spec = load_experiment(root, experiment)
    tiers, parent = spec.get("tiers"), load_tier(root, tier).get("like")
    if not runs_in(root, spec, tier):
        raise Misuse(f"experiment {experiment} has no runs in tier {tier}; its tiers: {', '.join(tiers)}")
    return tier if parent is None or tier in (tiers or {}) else parent


def experiment_names(root: Path, tier: str | None = None) -> list[str]:
    """All experiments, or those that have runs in a tier."""
    found = sorted(path.stem for path in (root / "workflow/config/experiments").glob("*.yaml"))
    return found if tier is None else [name for name in found if runs_in(root, load_experiment(root, name), tier)]


def runs_in(root: Path, spec: dict, tier: str) -> bool:
    """Whether an experiment has runs in a tier: those it names, those that are like one of them, all if it names none."""
    tiers = spec.get("tiers")
    return tiers is None or tier in tiers or load_tier(root, tier).get("like") in tiers


def load_experiment(root: Path, name: str) -> dict:
    """The experiment file as a dictionary, checked against its schema."""
    if name not in experiment_names(root):
        raise Misuse(f"unknown experiment {name!r}{nearest(name, experiment_names(root))}")
    path = root / f"workflow/config/experiments/{name}.yaml"
    loaded = read_yaml(path)
    check(root, loaded, "experiment", path)
    return loaded


def merge(base: dict, overlay: dict) -> dict:
    """Deep merge: dictionaries merge key by key, anything else (lists too) is replaced. Inputs stay unchanged."""
    merged = dict(base)
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def config_hash(config: dict) -> str:
    """First 16 hex digits of the sha256 of the configuration as canonical JSON; `resources` decide no result."""
    deciding = {key: value for key, value in config.items() if key != "resources"}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def runs(root: Path, experiment: str, tier: str, options: dict | None = None) -> list[dict]:
    """All runs of an experiment in a tier, in the order of axes and seeds.

    options: {paper's dataset: source} overrides the tier's stand-in, as in `--config superglue=hub`.
    """
    spec, source = load_experiment(root, experiment), set_by(root, experiment, tier)
    of_tier, overlay = load_tier(root, source), (spec.get("tiers") or {}).get(source) or {}
    settings = merge(spec["settings"], overlay.get("settings", {}))
    axes = {**spec.get("axes", {}), **overlay.get("axes", {})}
    seeds = overlay.get("seeds", spec.get("seeds", [0]))
    excluded = overlay.get("exclude", spec.get("exclude", []))
    path = root / f"workflow/config/experiments/{experiment}.yaml"
    found, planned = [], set()
    for point in grids.points(axes, overlay.get("rates", spec.get("rates")), excluded):
        config = settings
        for change in point.overlays:
            config = merge(config, change)
        config = use_tier_data(config, of_tier, options or {})
        if "unavailable" in (config.get("data") or {}):
            continue  # nothing stands in for it; the exhibit says what it needs
        config, after = with_stages(root, config, tier, options)
        own_rate = rates.named(config)
        waits = rates.awaited(root, config, source) if own_rate else None
        if own_rate:
            config = rates.resolved(root, config, source, point.axes)
            if (hashed := config_hash(config)) in planned:
                continue  # two readings of a claim agree on the rate: one set of runs serves both
            planned.add(hashed)
        check_run(root, config, path, place=f" (tier {tier}, variant {point.variant})")
        check_files_exist(config, path)
        resources = {"threads": 1, "mem_mb": 2000, "gpus": 0, "minutes": 30, **config.pop("resources", {})}
        for seed in seeds:
            if grids.fits(f"{point.variant}/seed{seed}", excluded):
                continue  # where nothing is random, one seed says it all
            found.append(
                {
                    "id": f"{experiment}/{point.variant}/seed{seed}",
                    "experiment": experiment,
                    "variant": point.variant,
                    "axes": point.axes,
                    "seed": seed,
                    "tier": tier,
                    "config": config,
                    "config_hash": config_hash({**config, "seed": seed}),
                    "resources": resources,
                    "after": after,
                    "keep_weights": seed == seeds[0] and point.variant in spec.get("keep_weights", ()),
                    **({"own_rate": True} if own_rate else {}),
                    **({"waits": waits} if waits else {}),
                }
            )
    if not found:
        raise Misuse(f"{path}: tier {tier} leaves no run; give every axis a value, at least one seed, exclude less")
    return found


def use_tier_data(config: dict, tier: dict, options: dict) -> dict:
    """Replace the paper's dataset by what the tier (or the user's option) uses for it; the name changes with it."""
    data = config.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("dataset"), str):
        return config  # none, or what the schema refuses
    wanted = data["dataset"]
    if wanted in options:
        stand_in = tier.get("data", {}).get(wanted, {})  # its tokenizer fits the models of this tier
        chosen = {"source": options[wanted], **{k: v for k, v in stand_in.items() if k == "tokenizer"}}
    else:
        chosen = dict(tier.get("data", {}).get(wanted, {}))
        opt_in = chosen.pop("opt_in", {})  # what is used only where its own dataset is asked for, as in bigbench=true
        if opt_in.get("dataset") in options:
            chosen = dict(opt_in)
        if chosen.get("dataset") in options:  # the stand-in from elsewhere, as in `--config sotu=url`
            chosen["source"] = options[chosen["dataset"]]
    return {**config, "data": {**data, **chosen}}


def check_run(root: Path, config: dict, path: Path, place: str = "") -> None:
    """Validate the configuration of a run: what all have, and what its task needs; the first problem is a one-line Misuse."""
    check(root, config, "run", path, place)
    check(root, {config["task"]: config}, "tasks", path, place)


STAGES = (("model", "pretrained"), ("measure", "reward"))  # where a run may name another one that is trained before it
STARTS = (*STAGES, ("measure", "classifier"), ("measure", "latent"))  # and where it takes the weights of one


def with_stages(root: Path, config: dict, tier: str, options: dict | None) -> tuple[dict, dict]:
    """Put a run's configuration of the same tier where another one is named as {experiment, variant}.

    Returns the configuration and {(key, inner key): that run}: of the seeds it is the first one's.
    """
    after = {}
    for key, inner in STAGES:
        named = part_of(config, key).get(inner)
        if not isinstance(named, dict) or "experiment" not in named:
            continue
        try:
            found = {run["variant"]: run for run in reversed(runs(root, named["experiment"], tier, options))}
        except RecursionError as error:
            raise Misuse(f"{key}.{inner}: {named['experiment']} starts from itself; name another experiment") from error
        variant = str(named.get("variant"))
        if variant not in found:
            raise Misuse(f"{key}.{inner}: {named['experiment']} has no variant {variant!r}{nearest(variant, found)}")
        before = after[key, inner] = found[variant]
        if not before["keep_weights"]:
            raise Misuse(
                f"{key}.{inner}: {named['experiment']} keeps no weights of {variant}; add it to its keep_weights"
            )
        config = {**config, key: {**config[key], inner: before["config"]}}
    return config, after


def part_of(config: dict, key: str) -> dict:
    """A part of a configuration; empty where it is none, or what the schema refuses."""
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def stages(config: dict) -> Iterator[dict]:
    """A configuration and all those inside it, which are trained before it."""
    yield config
    for key, inner in STAGES:
        found = part_of(config, key).get(inner)
        if isinstance(found, dict) and "task" in found:
            yield from stages(found)
        elif isinstance(found, dict) and key == "model":
            raise Misuse(
                f"model.pretrained: {found} is not a run; an experiment's file may name one as experiment and variant"
            )


@functools.cache
def names_in(folder: str) -> list[str]:
    """Names of the tasks, models or optimizers there are."""
    return (
        optim.names() if folder == "optim" else [p.stem for p in (Path(__file__).parents[1] / folder).glob("[a-z]*.py")]
    )


def check_files_exist(config: dict, path: Path) -> None:
    """Task, model, optimizer and dataset are named after the file that holds them; an unknown name is refused."""
    for key, folder in (("task", "tasks"), ("model", "models"), ("optimizer", "optim")):
        value = config.get(key)
        name = value.get("name") if isinstance(value, dict) else value
        if name is None:
            continue
        known = names_in(folder)
        if name not in known:
            raise Misuse(f"{path}: unknown {key} {name!r}{nearest(name, known)}")
    if config.get("model"):
        model_settings.check(config["model"], path)
