"""Between CPU and GPU without waiting: small tables up, offloaded moments both ways; and what a CUDA graph must not record."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

CAPTURED = (
    "step() inside a CUDA graph would replay with this step's learning rate and bias corrections for ever; capture forward "
    "and backward only, and call step() outside"
)


def upload(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. The host does not wait: the copy starts from pinned memory, which torch's allocator
    gives to nobody else before the copy has run."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def wait_for(devices: Iterable[torch.device]) -> None:
    """Wait until what was queued on these devices is done, so that pinned memory may be read."""
    for device in {device for device in devices if device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()


def refuse_capture() -> None:
    """RuntimeError while a CUDA graph is captured: numbers of the step are computed on the host."""
    if not torch.compiler.is_compiling() and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(CAPTURED)
