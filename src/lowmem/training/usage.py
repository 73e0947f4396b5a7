"""What a run used: bytes by component, peak memory, time per step."""

import contextlib
import resource
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from lowmem.optim.core.sharding import local

WARM_UP_STEPS = 10  # allocator, caches and compilation settle; at most a fifth of the steps


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements of all tensors; of a sharded one, those of this rank's part."""
    return sum(part.numel() * part.element_size() for part in map(local, tensors))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of every tensor in the optimizer's state, at any depth."""

    def tensors(value) -> Iterable[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            for item in value.values():
                yield from tensors(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from tensors(item)

    return bytes_of(tensors(dict(optimizer.state)))


def reset_peak(device: str) -> None:
    """Reset the peak, where the system allows it, since several runs share a process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # not Linux, or not permitted: the peak is then that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """Peak resident memory of the process in bytes since reset_peak, or since its start where that has no effect."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def memory(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: int, device: str) -> dict:
    """Bytes by component for the record. gradients: bytes kept from backward to step, 0 when used inside backward."""
    return {
        "parameters": bytes_of(model.parameters()),
        "gradients": gradients,
        "optimizer_state": state_bytes(optimizer),
        "peak_rss": peak_rss(),
        "peak_device": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def throughput(times: list[float], units: int, unit: str) -> dict | None:
    """Units per second and milliseconds per step without the first steps and without evaluation; null without steps."""
    counted = times[min(WARM_UP_STEPS, len(times) // 5) :]
    if not counted:
        return None
    milliseconds = [1000 * seconds for seconds in counted]
    tenths = statistics.quantiles(milliseconds, n=10) if len(milliseconds) > 1 else milliseconds * 9
    return {
        f"{unit}s_per_s": units * len(counted) / sum(counted),
        "step_ms": {"median": statistics.median(milliseconds), "p10": tenths[0], "p90": tenths[-1]},
    }
