"""Weights that another training gives: pre-training before fine-tuning, fine-tuning and a reward model before ReMax.

In an experiment's file `model.pretrained` or `measure.reward` may be {experiment, variant}. experiments.py puts the
configuration of that run in its place. Here it is trained once, with AdamW and seed 0 whichever optimizer the run is
about, and kept under data/prepared/networks by a hash of everything that decides it.
"""

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from lowmem import distributed, files, kept_files, provenance
from lowmem.errors import Misuse
from lowmem.optim.adamw import AdamW
from lowmem.training import fsdp
from lowmem.training.lr_schedule import lr_at
from lowmem.training.task import Task
from lowmem.weights import lazy_weights, pretrained
from lowmem.weights.pretrained import Words

SEED = 0  # one network for all seeds and optimizers, so that all start alike and are scored alike
PAUSE = 5.0  # seconds between two tries for a lock


def language_model(root: Path, settings: dict, device: str) -> tuple[nn.Module, Words]:
    """As pretrained.language_model; `pretrained` may also be the configuration of a run."""
    source = settings.get("pretrained")
    if not isinstance(source, dict):
        return pretrained.language_model(root, settings, device)
    own = sorted(settings.keys() - {"name", "pretrained", "dtype", "adapter"})
    if own:
        raise Misuse(f"model: {own[0]} cannot be set beside pretrained; the earlier training decides it")
    model, words = trained(root, source, device)
    return pretrained.finished(model, settings, device), words


def trained(root: Path, config: dict, device: str) -> tuple[nn.Module, Words]:
    """Model and words at the end of a run's training. The caller's random numbers stay untouched.

    Where several processes share the work, the weights stay in their file until fsdp.cut().
    """
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        task, words = built(root, config, device)
        place = kept_at(root, config, task, device)
        if fit_once(task, config, device, place):
            torch.manual_seed(SEED)
            task, words = built(root, config, device)  # the one that was trained may be sharded
        lazy_weights.note(task.model, {name: (place, name) for name, _ in task.model.named_parameters()})
        if distributed.world() == 1:
            lazy_weights.read(task.model, device)
    return task.model, words


def built(root: Path, config: dict, device: str) -> tuple[Task, Words]:
    """A fresh task and its words."""
    from lowmem.tasks import pretrain, reward, sft

    if config.get("optimizer", {}).get("name") != "adamw":
        raise Misuse("a training that another one starts from uses adamw; name such a variant")
    if config["task"] == "pretrain":
        if config["data"].get("tokenizer", "byte") != "byte":
            raise Misuse("a language model to start from reads bytes; set its data.tokenizer to byte")
        return pretrain.build(config, SEED, root, device), pretrained.byte_words()
    tasks = {"sft": sft, "reward": reward}
    if config["task"] not in tasks:
        raise Misuse(f"no training starts from task {config['task']}; choose pretrain, sft or reward")
    return tasks[config["task"]].make(config, SEED, root, device)


def kept_at(root: Path, config: dict, task: Task, device: str) -> Path:
    """Where the trained weights are kept."""
    inputs = provenance.hashes(root, task.inputs)
    deciding = {key: value for key, value in config.items() if key != "resources"}
    known = json.dumps([deciding, inputs, provenance.code_files(config), device], sort_keys=True)
    name = f"{config['task']}-{hashlib.sha256(known.encode()).hexdigest()[:16]}.safetensors"
    return root / "data/prepared/networks" / name


def fit_once(task: Task, config: dict, device: str, place: Path) -> bool:
    """Train and keep the weights unless they are there; whether it trained. One process holds the lock, all train."""
    first, many = distributed.rank() == 0, distributed.world() > 1
    with all_of_us(place, first) if many else files.locked(place):
        missing = first and not kept_files.is_good(place)
        missing = distributed.anywhere(missing) if many else missing
        if missing:
            model = fit(task, config, device)
            state = gathered(model) if many else model.state_dict()
            if first:
                kept = {name: state[name].contiguous() for name, _ in model.named_parameters()}  # tied ones once
                kept_files.write(place, safetensors.torch.save(kept))
        if many:
            distributed.anywhere(False)  # nobody reads before it is written
    return missing


@contextlib.contextmanager
def all_of_us(place: Path, first: bool) -> Iterator[None]:
    """The lock of fetch.locked, held by rank 0. Another job may hold it for hours: until then the ranks ask each other
    every few seconds, since a rank that waits in silence for longer than distributed.TIMEOUT would be given up."""
    with files.lock_file(place) as file:

        def taken() -> bool:
            with contextlib.suppress(BlockingIOError):
                if first:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return first
            return False

        while not distributed.anywhere(taken()):
            time.sleep(PAUSE)
        yield


def fit(task: Task, config: dict, device: str) -> nn.Module:
    """All steps of a configuration, without evaluations; sharded where several devices share the run."""
    train, world = config["train"], distributed.world()
    model = fsdp.shard(task.model, SEED) if world > 1 else task.model
    batch = train["batch_size"]
    parts, own = distributed.share(batch, train.get("micro_batch_size") or batch, world)
    settings = {key: value for key, value in config["optimizer"].items() if key != "name"}
    optimizer, schedule = AdamW(model, **settings), config.get("schedule") or {}
    model.train()
    for step in range(train["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step + 1, settings["lr"], schedule, train["steps"])
        for part in range(own):
            with torch.enable_grad(), torch.autocast(device, torch.bfloat16, enabled=train.get("precision") == "bf16"):
                loss = task.loss(model, task.batch(step * parts + part * world + distributed.rank()))
            (loss / own).backward()
        if train.get("grad_clip"):
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], train["grad_clip"])
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def gathered(model: nn.Module) -> dict:
    """The whole weights of a sharded model on rank 0."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
