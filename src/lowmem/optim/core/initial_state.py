"""The state of a parameter before its first step: what its rule keeps, what storage adds, and a step count of zero."""

from __future__ import annotations

import torch
from torch import nn

from lowmem.optim.core.storage import extra_state


def make(optimizer, parameters: list[tuple[dict, nn.Parameter]]) -> None:
    """Make what (group, parameter) pairs lack of their state, and their layouts."""
    for group, p in parameters:
        optimizer.layout(p)
        state, blocks = optimizer.state[p], optimizer.blocks(p)
        found = optimizer.init(p, group, blocks, group["state_dtype"] or p.dtype)
        for key, value in (found | extra_state(p, found, blocks, group)).items():
            if key not in state:
                state[key] = value.cpu().pin_memory() if optimizer.offloads(p, key) else value
        state.setdefault("step", torch.zeros((), dtype=torch.float32, device="cpu"))


def add_late(optimizer, parameters: list[tuple[dict, nn.Parameter]]) -> None:
    """Make optional state where a setting that needs it was raised after the first step."""
    lacking = [
        (group, p)
        for group, p in parameters
        if any(key not in optimizer.state[p] and group[setting] for key, setting in optimizer.optional_state)
    ]
    make(optimizer, lacking)
    for _, p in lacking:
        optimizer.late(optimizer.state[p])
