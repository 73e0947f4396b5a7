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
    "FusedBackward": "fused_backward",
    "make": "_factory",
    "find": "_factory",
}
__all__ = [name for name in _HOMES if name != "find"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"lowmem.optim.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lowmem.optim' has no attribute {name!r}")


# fmt: off
INFRASTRUCTURE = (
    "checks", "clipping", "copies", "driver", "exchange", "factored", "flat_blocks", "fused_backward", "gpu_step",
    "gpu_tables", "graph", "hooks", "kernel", "kernel_build", "loading", "no_decay", "parallel", "param_blocks",
    "rounding", "settings", "sharding", "stages", "state", "together", "transfers", "triton_kernels", "watch",
    "without_compiler", "zero1",
)
# fmt: on


def names() -> list[str]:
    """Optimizers by the name of their file."""
    return sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py") if p.stem not in INFRASTRUCTURE)
