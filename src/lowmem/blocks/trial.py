"""Running a user's module once to see what it computes, without a trace: no buffer, cache, mode or random number changes."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def on_trial(module: nn.Module) -> Iterator[None]:
    """Inside, the module may be run: in eval mode, with random numbers of its own, without hooks on what it returns.

    What its forward writes into buffers, tensors, lists, dictionaries and attributes of the module is undone. Parameters are
    left as they are.
    """
    modules = list(module.modules())
    before = [dict(m.__dict__) for m in modules]
    devices = {p.device for p in (*module.parameters(), *module.buffers()) if p.device.type == "cuda"}
    try:
        for m in modules:
            for key, value in m.__dict__.items():
                m.__dict__[key] = _scratch(value)
            m._buffers = {key: _scratch(value) for key, value in m._buffers.items()}
            m._forward_hooks = collections.OrderedDict()
            m.training = False
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(0)
            yield
    finally:
        for m, attributes in zip(modules, before):
            m.__dict__.clear()
            m.__dict__.update(attributes)


def _scratch(value):
    """A copy of what a forward may change in place; anything else as it is."""
    if type(value) is Tensor:
        return value.detach().clone()
    return value.copy() if type(value) in (dict, list, set, collections.OrderedDict) else value
