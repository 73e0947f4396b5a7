"""Optimizers that need little memory, and the baselines they are compared with. Needs PyTorch only.

from lowmem.optim import AdamMini, Lomo
opt = AdamMini(model, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)     # used like any torch.optim optimizer
opt = Lomo(model, lr=3e-2, max_grad_norm=1.0)                           # opt.backward(loss) in place of loss.backward()
"""

import importlib
from pathlib import Path

_HOMES = {
    "AdamMini": "adam_mini",
    "AdamW": "adamw",
    "SGD": "sgd",
    "Lomo": "lomo",
    "AdaLomo": "adalomo",
    "Adafactor": "adafactor",
    "CAME": "came",
    "SM3": "sm3",
    "Lion": "lion",
    "Lamb": "lamb",
    "FusedBackward": "core.fused_backward",
    "Zero1": "core.zero1",
    "convert": "core.conversion",
    "make": "_factory",
    "find": "_factory",
}
# fmt: off
__all__ = [
    "CAME", "SGD", "SM3", "AdaLomo", "Adafactor", "AdamMini", "AdamW", "FusedBackward", "Lamb", "Lion", "Lomo", "convert",
    "find", "make",
]
# fmt: on


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"lowmem.optim.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lowmem.optim' has no attribute {name!r}")


def names() -> list[str]:
    """Optimizers by the name of their file."""
    return sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py"))
