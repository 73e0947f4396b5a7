"""What a training step really takes on this machine: peak memory from the allocator's own events, and time.

On a CPU the events are those that torch.profiler records of PyTorch's CPU allocator, from the first parameter on; the
process's resident memory is reported as well. On a GPU they are torch.cuda's statistics. Neither knows of tracker.py.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from lowmem.memory.accountant import TrainingSetup, update_through, without_buffers
from lowmem.memory.target_model import Target
from lowmem.optim._factory import make
from lowmem.optim.core.fused_backward import FusedBackward
from lowmem.training import usage

COUNTED = "lowmem: counted step"


def build(target: Target, cell: TrainingSetup, device: str) -> Callable[[], None]:
    """A function that does one real training step of a cell on random tokens, model and optimizer made here."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if cell.precision in ("bf16", "master") else torch.float32
    with torch.device(device):  # filling 7 billion weights on a CPU takes two minutes
        model = target.make().to(device, dtype)
        twin = without_buffers(target.make().to(device)) if cell.precision == "master" else None
    if cell.checkpointing:
        for layer in target.layers(model):
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    optimizer = make(model if twin is None else twin, **cell.optimizer)
    fused = isinstance(optimizer, FusedBackward)
    tokens = torch.randint(target.vocab_size, (cell.batch, cell.seq_len), device=device)

    def step() -> None:
        mixed = torch.autocast(device, torch.bfloat16) if cell.precision == "mixed" else contextlib.nullcontext()
        with mixed:
            loss = target.loss(model, tokens)
        if fused:
            optimizer.backward(loss)
        else:
            loss.backward()
        del loss
        if twin is not None:
            update_through(optimizer, model, twin)
        else:
            optimizer.step()
        model.zero_grad()

    return step


def inference(target: Target, cell: TrainingSetup, device: str) -> Callable[[], None]:
    """A function that runs the model forward on random tokens without gradients, loss included."""
    torch.manual_seed(0)
    model = target.make().to(device, torch.bfloat16 if cell.precision in ("bf16", "master") else torch.float32).eval()
    tokens = torch.randint(target.vocab_size, (cell.batch, cell.seq_len), device=device)

    @torch.no_grad()
    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=cell.precision == "mixed"):
            target.loss(model, tokens)

    return step


def peak_bytes(
    target: Target, cell: TrainingSetup, device: str = "cpu", make_step: Callable = build
) -> tuple[int, int | None]:
    """(peak of the allocator, growth of the process's resident memory or None) over one step after the first.

    make_step: build, or inference. What earlier work left to the garbage collector is freed before: freed during the
    step, it would count against the step.
    """
    gc.collect()
    return (_peak_of_gpu if device == "cuda" else _peak_of_cpu)(functools.partial(make_step, target, cell))


def _peak_of_cpu(make_step: Callable) -> tuple[int, int | None]:
    from torch.profiler import ProfilerActivity, profile, record_function

    usage.reset_peak("cpu")
    before = resident()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = make_step("cpu")
        step()
        with record_function(COUNTED):
            step()
    events = profiler.profiler.kineto_results.events()
    window = next(e for e in events if e.name() == COUNTED)
    start, end = window.start_ns(), window.start_ns() + window.duration_ns()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = sum(size for at, size in changes if at < start)
    peak = live
    for at, size in changes:
        if start <= at <= end:
            live += size
            peak = max(peak, live)
    return peak, None if before is None else usage.peak_rss() - before


def _peak_of_gpu(make_step: Callable) -> tuple[int, None]:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    step = make_step("cuda")
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, None


@contextlib.contextmanager
def snapshot(path: Path | None) -> Iterator[None]:
    """On a GPU, keep every allocation inside for pytorch.org/memory_viz; path None: do not."""
    if path is None or not torch.cuda.is_available():
        yield
        return
    torch.cuda.memory._record_memory_history(max_entries=200_000)
    try:
        yield
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def resident() -> int | None:
    """Bytes of this process in memory now; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def in_turn(steps: dict[str, Callable[[], None]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of every step, all of them once per round, so that ratios are taken within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(warmup + rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds
