"""Training on several devices: one process each, started by torchrun (weights and state: fsdp.py).

    torchrun --nproc-per-node 2 -m lowmem train RUN.json      # for a run with train.devices: 2

A run without train.devices (or with 1) is done by rank 0 alone, whatever the world. PyTorch is imported where processes
join: before that, each is alone.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lowmem import files
from lowmem.errors import Failed, Misuse, one_line
from lowmem.progress import say

TIMEOUT = datetime.timedelta(minutes=10)  # after which a rank stops waiting for the others
PAUSE = 5.0  # seconds between two tries for a lock
_apart = False  # whether rank 0 works by itself for a while


def devices(run: dict) -> int:
    """How many devices a run asks for."""
    return run["config"].get("train", {}).get("devices") or 1


def world() -> int:
    """How many processes share the work at hand; 1 for a run of one device, whoever waits beside it."""
    dist = sys.modules.get("torch.distributed")
    return dist.get_world_size() if dist and dist.is_available() and dist.is_initialized() and not _apart else 1


def rank() -> int:
    """This process's number; 0 where there is one process."""
    return sys.modules["torch.distributed"].get_rank() if world() > 1 else 0


def tell(line: str) -> None:
    """Print a line that all ranks have, once."""
    if rank() == 0:
        say(line)


def int_of(name: str, default: int) -> int:
    """A whole number of the environment; Misuse when it is none."""
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Misuse(f"{name} is {text[:40]!r} in the environment and must be a whole number; unset it")
    return int(text)


@contextlib.contextmanager
def process_group(runs: list[dict]) -> Iterator[None]:
    """Join the processes that torchrun started, if a run asks for them; Misuse when there are too few."""
    asked = max(runs, key=devices, default=None)
    seen = int_of("WORLD_SIZE", 1)
    if asked is not None and seen < devices(asked):
        raise Misuse(
            f"{asked['id']} asks for {devices(asked)} devices and {seen} process{'es' * (seen > 1)} run; start it with "
            f"torchrun --nproc-per-node {devices(asked)} -m lowmem train ..."
        )
    if asked is None or seen == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    on_gpu = any(run["resources"].get("gpus", 0) for run in runs)
    if on_gpu and torch.cuda.is_available():
        torch.cuda.set_device(int_of("LOCAL_RANK", 0))
    timeout = datetime.timedelta(seconds=int_of("LOWMEM_TIMEOUT", int(TIMEOUT.total_seconds())))
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
    except (ValueError, RuntimeError) as error:  # e.g. a variable of torchrun that was left in the shell
        raise Misuse(
            f"WORLD_SIZE is {seen}, and its processes cannot be joined ({one_line(error)}); start them with torchrun, or "
            "unset it"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()
        if not on_gpu:  # gives gloo's threads time to release their tensors; a process that exits earlier is aborted
            time.sleep(0.2)


@contextlib.contextmanager
def rank0_only(run: dict) -> Iterator[None]:
    """While rank 0 does a run of one device, it is a world of its own."""
    global _apart
    before, _apart = _apart, devices(run) == 1
    try:
        yield
    finally:
        _apart = before


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """files.locked, held by rank 0 for all. Another job may hold it for hours: meanwhile the ranks ask each other every
    few seconds, since one that waits in silence for longer than TIMEOUT would be given up."""
    if world() == 1:
        with files.locked(target):
            yield
        return
    with files.lock_file(target) as file:
        while not any_rank(rank() == 0 and files.taken(file)):
            time.sleep(PAUSE)
        yield


def first(value):
    """What rank 0 has, on every rank. Collective."""
    if world() == 1:
        return value
    import torch.distributed as dist

    sent = [value]
    dist.broadcast_object_list(sent, src=0)
    return sent[0]


def mean(value: float) -> float:
    """The mean of a number over all ranks, the same bits on each."""
    if world() == 1:
        return value
    import torch
    import torch.distributed as dist

    total = torch.tensor(value, dtype=torch.float64, device=device())
    dist.all_reduce(total)
    return (total / world()).item()


def any_rank(flag: bool) -> bool:
    """Whether a flag is set on any rank."""
    return mean(float(flag)) > 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Failed raised in this block on one rank is raised on all of them, with the same message. Collective."""
    problem = None
    try:
        yield
    except Failed as error:
        problem = str(error)
    problems = [problem]
    if world() > 1:
        import torch.distributed as dist

        problems = [None] * world()
        dist.all_gather_object(problems, problem)
    if any(problems):
        raise Failed(next(filter(None, problems)))


def split_batch(batch: int, micro: int, ranks: int) -> tuple[int, int]:
    """(micro-batches per step over all ranks, those of one rank); Misuse when they do not divide."""
    if batch % micro:
        raise Misuse(f"train.batch_size {batch} is not a multiple of micro_batch_size {micro}; change one of them")
    parts = batch // micro
    if parts % ranks:
        raise Misuse(
            f"train.batch_size {batch} makes {parts} micro-batches of {micro}, which {ranks} devices cannot share "
            f"evenly; set train.micro_batch_size to {max(batch // ranks, 1)} or a divisor of it"
        )
    return parts, parts // ranks


def device() -> str:
    """What collectives of the process group run on: cuda with nccl, else cpu."""
    import torch.distributed as dist

    return "cuda" if dist.get_backend() == "nccl" else "cpu"
