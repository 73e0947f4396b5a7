"""Between CPU and GPU without waiting: small tables up, offloaded moments both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def upload(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. The host does not wait: the copy starts from pinned memory, which torch's allocator
    gives to nobody else before the copy has run."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def download(x: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """(host copy of a device tensor, under way; a function that waits until it has arrived)."""
    if x.device.type != "cuda":
        return x.detach().to("cpu", copy=True), lambda: None
    pinned = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
    pinned.copy_(x.detach(), non_blocking=True)
    return pinned, torch.cuda.current_stream(x.device).record_event().synchronize


def wait_for(devices: Iterable[torch.device]) -> None:
    """Wait until what was queued on these devices is done, so that pinned memory may be read."""
    for device in {device for device in devices if device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
