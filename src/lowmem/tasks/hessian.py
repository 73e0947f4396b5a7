"""Train a small model briefly and compute its Hessian along the way (Adam-mini, Figures 3 and 7).

Everything is float64. The Hessian is that of the loss on a fixed sample of training data, for one parameter tensor at a
time: exact, with the share of |H| inside the blocks of lowmem.partition against random partitions, an image, and what
spectral clustering finds without knowing the blocks; or, for models too large for that, by sampled columns.
"""

import fnmatch
import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowmem import models, partition
from lowmem.analysis import clustering, hessian, toy_data
from lowmem.blocks import ParamBlocks
from lowmem.errors import Misuse, nearest, refuse_unknown
from lowmem.optim._factory import make
from lowmem.training.task import Task
from lowmem.training.update import Updates

KEYS = {"stages", "modules", "examples", "classes", "pool", "memory_mb", "pixels", "rows", "columns", "clusters"}


def measure(config: dict, seed: int, root: Path) -> dict:
    """Hessians of config["model"] on config["data"] at given fractions of training.

    measure: stages (parts of train.steps, e.g. 0.01), modules {shown name: parameter or pattern}, examples (images or
    sequences of the loss whose Hessian it is), classes and pool (images, see toy_data), memory_mb (largest matrix),
    pixels (of an image), rows (Hessian rows at once), columns (sampled per tensor; 0 or absent: exact), clusters
    (whether to cluster).

    Returns metrics.final {parameters, stages: {stage: {step, loss, modules: {name: {share, null, null_low, null_high,
    contrast, blocks, kind, size, ...}}}}} and for exact ones arrays {"<name>@<stage>": image of |H|}.
    """
    settings = {"stages": [1.0], "memory_mb": 2000, "pixels": 128, "rows": 32, **config.get("measure", {})}
    check(config, settings)
    data = toy_data.load({**config, "measure": settings}, seed, root)
    model = models.build(config["model"], **data.shape).double()
    places = find_modules(model, settings["modules"])
    steps, size, final, arrays = config["train"]["steps"], config["train"]["batch_size"], {}, {}
    task = Task(model, lambda index: data.batch(index + 1, size), mean_loss, lambda model: {}, units=size)
    updates = Updates(task, make(model, **config["optimizer"]), config["train"], config.get("schedule"), "cpu")
    done = 0
    for stage in sorted(settings["stages"]):
        while done < max(1, round(stage * steps)):
            done += 1
            updates.make_finite(done)
        looked_at = look_by_columns if settings.get("columns") else look
        final[f"{stage:g}"] = {"step": done, **looked_at(model, data, places, settings, seed, f"{stage:g}", arrays)}
    count = sum(p.numel() for p in model.parameters())
    metrics = {"final": {"parameters": count, "stages": final}}
    return {"metrics": metrics, "arrays": arrays, "inputs": data.inputs}


def check(config: dict, settings: dict) -> None:
    """Misuse for what a configuration lacks or misspells."""
    refuse_unknown(settings, KEYS, "measure")
    for key in ("modules", "examples"):
        if key not in settings:
            raise Misuse(f"task hessian needs measure.{key}")
    for key in ("data", "model", "optimizer", "train"):
        if key not in config:
            raise Misuse(f"task hessian needs {key} in its configuration")
    if not all(0 < stage <= 1 for stage in settings["stages"]):
        raise Misuse(f"measure.stages are parts of training between 0 and 1, got {settings['stages']}")


def find_modules(model: nn.Module, wanted: dict[str, str]) -> dict[str, list[tuple[ParamBlocks, nn.Parameter]]]:
    """{shown name: the parameters that its pattern matches, with their blocks}."""
    blocks, found = partition(model, neurons=True), {}
    for name, pattern in wanted.items():
        matches = [(blocks[key], p) for key, p in blocks.named_parameters() if fnmatch.fnmatchcase(key, pattern)]
        if not matches:
            known = [key for key, _ in blocks.named_parameters()]
            raise Misuse(f"measure.modules: {name}: no parameter is called {pattern!r}{nearest(pattern, known)}")
        found[name] = matches
    return found


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy in the model's own precision; the models themselves return an fp32 loss."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def look(model, data, places: dict, settings: dict, seed: int, stage: str, arrays: dict) -> dict:
    """Exact Hessians of one stage: {loss, modules}; images go into `arrays`."""
    found = {}
    for name, matches in places.items():
        if len(matches) > 1:
            raise Misuse(f"measure.modules: {name} matches {len(matches)} tensors; an exact Hessian is of one")
        [(blocks, parameter)] = matches
        limit = int(settings["memory_mb"] * 1e6)
        matrix = hessian.exact(lambda: mean_loss(model, data.sample), parameter, settings["rows"], limit)
        skew = float(np.abs(matrix - matrix.T).max()) if len(matrix) <= 4096 else None
        largest = float(np.abs(matrix).max())
        magnitude = np.abs(matrix, out=matrix)
        groups = hessian.labels(blocks)
        found[name] = {
            **hessian.block_share(magnitude, groups, seed),
            **about(blocks),
            "largest": largest,
            "asymmetry": None if skew is None else skew / largest if largest else 0.0,
            "diagonal": float(np.trace(magnitude) / magnitude.sum()),
        }
        if settings.get("clusters"):
            found[name]["clusters"] = compare_clusters(magnitude, blocks, groups, seed)
        arrays[f"{name}@{stage}"] = hessian.picture(magnitude, groups, settings["pixels"])
    return {"loss": loss_now(model, data), "modules": found}


def about(blocks: ParamBlocks) -> dict:
    """What the record says of a parameter's blocks."""
    return {"blocks": blocks.count, "kind": blocks.kind, "size": blocks.numel, "shape": list(blocks.shape)}


def loss_now(model, data) -> float:
    """Loss on the sample of which the Hessian is taken."""
    with torch.no_grad():
        return mean_loss(model, data.sample).item()


def compare_clusters(magnitude: np.ndarray, blocks: ParamBlocks, groups: np.ndarray, seed: int) -> dict:
    """Agreement (adjusted Rand index) of a spectral clustering of |H| with the rule, and with grouping by input.

    The number of clusters is the rule's number of blocks; where they lie is for the matrix to say. Elements without
    any curvature (a dark pixel, a dead neuron) are left out. The null shuffles the clusters' labels.
    """
    live = magnitude.sum(axis=1) > 0
    by_input = np.arange(blocks.numel) % blocks.shape[-1]  # the other axis of the matrix
    if live.sum() <= blocks.count:
        return {"agreement": None, "live": int(live.sum())}
    found = clustering.spectral(magnitude[np.ix_(live, live)], blocks.count, seed)
    null = [
        clustering.adjusted_rand(shuffled, groups[live]) for shuffled in hessian.random_partitions(found, 200, seed)
    ]
    low, high = np.quantile(null, [0.025, 0.975])
    return {
        "agreement": clustering.adjusted_rand(found, groups[live]),
        "agreement_by_input": clustering.adjusted_rand(found, by_input[live]),
        "null_low": float(low),
        "null_high": float(high),
        "live": int(live.sum()),
    }


def look_by_columns(model, data, places: dict, settings: dict, seed: int, stage: str, arrays: dict) -> dict:
    """Sampled columns of one stage, pooled over the tensors of a module: {loss, modules}.

    Adds low and high, a 95 % bootstrap over the sampled columns, and own_tensor: the share of a column's mass over all
    parameters that stays inside its tensor. Columns are drawn among elements with a gradient: a token that does not
    occur in the sample has no curvature.
    """
    everything, found = list(model.parameters()), {}
    gradients = dict(zip(everything, torch.autograd.grad(mean_loss(model, data.sample), everything), strict=True))
    for name, matches in places.items():
        inside, total, null_inside, anywhere, entries = [], [], [], [], []
        for tensor, (blocks, parameter) in enumerate(matches):
            groups = hessian.labels(blocks)
            live = np.flatnonzero(gradients[parameter].flatten().numpy())
            generator = np.random.default_rng([seed, tensor])
            chosen = np.sort(generator.choice(live, min(settings["columns"], len(live)), replace=False))
            loss = functools.partial(mean_loss, model, data.sample)
            cut, mass = hessian.columns(loss, parameter, everything, chosen, settings["rows"])
            magnitude = np.abs(cut)
            inside += list((magnitude * (groups[chosen][:, None] == groups)).sum(axis=1))
            total += list(magnitude.sum(axis=1))
            anywhere += list(mass)
            entries += list(np.bincount(groups)[groups[chosen]] / len(groups))
            shuffled = hessian.random_partitions(groups, hessian.DRAWS, seed)
            null_inside.append(hessian.mass_inside(magnitude, shuffled, chosen) * magnitude.sum())
        found[name] = pool(np.array(inside), np.array(total), np.sum(null_inside, axis=0), seed)
        share, part = found[name]["share"], float(np.mean(entries))
        found[name] |= {**about(matches[0][0]), "tensors": len(matches), "columns": len(inside)}
        found[name] |= {"contrast": share / part / ((1 - share) / (1 - part))}
        found[name] |= {"own_tensor": float(np.sum(total) / np.sum(anywhere))}
    return {"loss": loss_now(model, data), "modules": found}


def pool(inside: np.ndarray, total: np.ndarray, null_inside: np.ndarray, seed: int) -> dict:
    """Share of the mass inside blocks over all sampled columns (k,), its bootstrap interval, and the null's."""
    again = np.random.default_rng(seed).integers(0, len(inside), (2000, len(inside)))
    low, high = np.quantile(inside[again].sum(axis=1) / total[again].sum(axis=1), [0.025, 0.975])
    null_low, null, null_high = (float(v) for v in np.quantile(null_inside / total.sum(), [0.025, 0.5, 0.975]))
    share = float(inside.sum() / total.sum())
    interval = {"low": float(low), "high": float(high)}
    return {"share": share, **interval, "null": null, "null_low": null_low, "null_high": null_high}
