"""Checkpoints of models and optimizers on several processes, through torch.distributed.checkpoint.

Each rank writes its part; any number of ranks, even one, can read it back. A checkpoint is a folder step<k> that
appears by renaming once all ranks have written, so that the last good one survives any crash. It holds tensors
and layout.json (names, shapes, blocks, settings, and the hash of every file). Reading checks the hashes and compares the
layout first, and executes nothing; a checkpoint whose bytes changed is skipped.

    save(folder, step, model, optimizer, {"tokens": 1000})      # every rank calls it
    extra = load(folder, model, optimizer)                      # None when there is none
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from lowmem import kept_files
from lowmem.distributed import rank, world
from lowmem.errors import Failed, Misuse, one_line
from lowmem.files import sha256, synced
from lowmem.progress import say
from lowmem.training.checkpoint_metadata import Planner, Reader


def save(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict | None = None
) -> Path:
    """Write folder/step<step>, then remove older ones. extra: JSON-serialisable values. Collective.

    Raises Failed on every surviving rank when one could not write.
    """
    folder = Path(folder)
    target, partial = folder / f"step{step}", folder / f".step{step}.partial"
    tensors, layout = _content(model, optimizer)
    layout |= {"step": step, "extra": extra or {}, "world_size": world()}
    try:
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        _barrier()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one process without a group is as good as any
            dcp.save(tensors, checkpoint_id=partial)
        hashes = _joined({path.name: sha256(path) for path in _own(partial, rank())})
        if rank() == 0:
            kept_files.write_json(partial / "layout.json", {**layout, "files": hashes})
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            synced(folder)
        _barrier()
    except Exception as error:  # a full disk, or another rank that is gone
        raise Failed(
            f"checkpoint {target} was not written ({one_line(error, 200)}); the last one is untouched, start again from it"
        ) from error
    if rank() == 0:
        for old in folder.glob("step*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    return target


def peek(folder: Path) -> dict | None:
    """What load will return, without reading tensors. Collective."""
    found = _agreed(Path(folder))
    return {"step": found[1]["step"], **found[1]["extra"]} if found else None


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict | None:
    """Read the newest checkpoint into model and optimizer, cut to this rank's parts; {"step": k, **extra}. Collective.

    None when there is none. Raises Misuse on every rank, before anything changes, when it is of another model or
    partition.
    """
    found = _agreed(Path(folder))
    if found is None:
        return None
    path, saved = found
    tensors, here = _content(model, optimizer)
    _compare(path, saved, here)
    if saved["world_size"] != world():
        tensors.pop("rng")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load(tensors, storage_reader=Reader(path, set(saved["files"])), planner=Planner())
        except (Exception, CheckpointException) as error:  # of another version of PyTorch, or nothing that save() wrote
            raise Failed(f"{path} cannot be used ({one_line(error, 200)}); delete it to start over") from error
    model.load_state_dict(tensors["model"])
    groups = iter(saved["groups"])
    for part in _parts(optimizer):
        state = part.state_dict()
        for i, name in _names(part, state).items():
            state["state"][i] = tensors["optimizer"][name]
        for group, settings in zip(state["param_groups"], groups):
            group.update({key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()})
        if "fused" in state:
            state["fused"] = saved["fused"]
        part.load_state_dict(state)
    if hasattr(optimizer, "parts"):
        optimizer.share()
    if "rng" in tensors:
        torch.set_rng_state(tensors["rng"][str(rank())])
    return {"step": saved["step"], **saved["extra"]}


def _content(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """(tensors by name, layout): tensors are the live ones where optimizer and model keep them so."""
    tensors = {"model": model.state_dict(), "optimizer": {}, "rng": {str(rank()): torch.get_rng_state()}}
    shapes = {key: [list(x.shape), str(x.dtype)] for key, x in tensors["model"].items() if isinstance(x, Tensor)}
    layout = {"rule": "", "model": shapes, "blocks": {}, "optimizer": {}, "groups": []}
    for part in _parts(optimizer):
        inner = getattr(part, "inner", part)
        inner.prepare()
        state = part.state_dict()
        own = {name: state["state"][i] for i, name in _names(part, state).items() if i in state["state"]}
        live = [p for group in inner.param_groups for p in group["params"]]
        unsaved = ("params", "blocks", "param_names")
        groups = [{k: v for k, v in g.items() if _plain(v) and k not in unsaved} for g in state["param_groups"]]
        tensors["optimizer"] |= own
        layout["rule"] += ("+" if layout["rule"] else "") + type(inner).__name__
        if inner.uses_blocks:
            layout["blocks"] |= {inner.name(p): inner.blocks(p).signature for p in live if p.requires_grad}
        layout["optimizer"] |= {n: {k: list(v.shape) for k, v in entry.items()} for n, entry in own.items()}
        layout["groups"] += groups
        layout |= {"fused": state["fused"]} if "fused" in state else {}
    return tensors, layout


def _parts(optimizer: torch.optim.Optimizer) -> tuple:
    """The optimizers in one: two on different parameters where they work together (optim/core/combined.py)."""
    return getattr(optimizer, "parts", (optimizer,))


def _names(optimizer: torch.optim.Optimizer, state: dict) -> dict[int, str]:
    """{index in the state dictionary: parameter name}."""
    inner = getattr(optimizer, "inner", optimizer)
    saved = [i for group in state["param_groups"] for i in group["params"]]
    return dict(zip(saved, (inner.name(p) for group in inner.param_groups for p in group["params"])))


def _compare(path: Path, saved: dict, here: dict) -> None:
    """Misuse, naming the first difference, unless the checkpoint is of this model, rule and partition."""
    if saved["rule"] != here["rule"]:
        raise Misuse(f"{path} was saved with {saved['rule']}, this run uses {here['rule']}; use another folder")
    for kind, what in (("model", "tensor"), ("blocks", "partition"), ("optimizer", "state")):
        for name in dict.fromkeys([*here[kind], *saved[kind]]):
            one, other = saved[kind].get(name), here[kind].get(name)
            if one != other:
                raise Misuse(
                    f"{path} is from another model or partition: {what} of {name} is {one} there and {other} here; use the "
                    "same settings or another folder"
                )
    if len(saved["groups"]) != len(here["groups"]):
        raise Misuse(f"{path} has {len(saved['groups'])} parameter groups, this run has {len(here['groups'])}")


def _agreed(folder: Path) -> tuple[Path, dict] | None:
    """(folder, layout) of the newest checkpoint whose files are as they were written, the same on every rank."""
    names = [path.name for path in folder.glob("step*")]
    steps = _joined({name: "" for name in names if re.fullmatch(r"step\d{1,18}", name)} if rank() == 0 else {})
    for name in sorted(steps, key=lambda name: int(name[4:]), reverse=True):
        path, problem, layout = folder / name, "", {}
        try:
            layout = kept_files.read_json(path / "layout.json")
            for number, (file, value) in enumerate(sorted(layout["files"].items())):
                if number % world() == rank():
                    kept_files.check(path / file, value)
        except Exception as error:
            problem = one_line(error, 200)
        problems = [message for message in _joined({str(rank()): problem}).values() if message]
        if not problems:
            return path, layout
        if rank() == 0:
            say(f"{path} cannot be used: {problems[0]}; trying an older one or starting over")
    return None


def _own(folder: Path, number: int) -> list[Path]:
    """The files of a checkpoint that a rank wrote; the table of contents is rank 0's."""
    return sorted(folder.glob(f"__{number}_*")) + ([folder / ".metadata"] if number == 0 else [])


def _joined(one: dict) -> dict:
    """The dictionaries of all ranks as one. Collective."""
    if world() == 1:
        return one
    found = [None] * world()
    dist.all_gather_object(found, one)
    return {key: value for part in found for key, value in part.items()}


def _plain(value) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _barrier() -> None:
    if world() > 1:
        dist.barrier()
