"""Between CPU and GPU without waiting: small tables up, offloaded moments both ways."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


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
