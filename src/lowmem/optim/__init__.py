"""Optimizers that need little memory, and the baselines they are compared with. Needs PyTorch only.

from lowmem.optim import AdamMini, Lomo
opt = AdamMini(model, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)     # used like any torch.optim optimizer
opt = Lomo(model, lr=3e-2, max_grad_norm=1.0)                           # opt.backward(loss) in place of loss.backward()
"""

import functools
import importlib
import re
from pathlib import Path

_HOMES = {  # what is not a rule
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


@functools.cache
def _rules() -> dict[str, str]:
    """{class: file} of the rules: what each file defines, read from its source, so that nothing is imported."""
    files = {name: (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8") for name in names()}
    return {kind: name for name, text in files.items() for kind in re.findall(r"^class (\w+)", text, re.MULTILINE)}


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_rules()})


def __getattr__(name: str):
    home = _HOMES.get(name) or (None if name.startswith("_") else _rules().get(name))
    if home is None:
        raise AttributeError(f"module 'lowmem.optim' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lowmem.optim.{home}"), name)


def names() -> list[str]:
    """Optimizers by the name of their file."""
    return sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py"))
