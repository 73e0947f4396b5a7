"""What a copy or a pickled optimizer keeps of the objects around it: its model, and a function that was handed over."""

from __future__ import annotations

import copy
import io
import pickle

import torch


class Lost:
    """Stands for a function that could not be pickled: only its use is an error."""

    def __call__(self, *_arguments):
        raise RuntimeError(
            "no_decay was a function without a name of its own, which pickle cannot keep; give new groups their own "
            "weight_decay, or write no_decay as name patterns"
        )


class Link:
    """A reference that copies and pickles follow where they can, and otherwise leave out: it never makes them fail."""

    def __init__(self, target):
        self.target = target

    def __deepcopy__(self, memo: dict) -> Link:
        if id(self.target) in memo:
            return Link(memo[id(self.target)])
        try:
            return Link(copy.deepcopy(self.target, memo))
        except Exception:  # whatever a model holds that has no copy: process groups, files
            return Link(_stand_in(self.target))

    def __reduce__(self):
        return Link, (self.target if _pickles(self.target) else _stand_in(self.target),)


class _Structure(pickle.Pickler):
    """Pickles everything but the contents of tensors."""

    def persistent_id(self, value):
        return "tensor" if isinstance(value, torch.Tensor) else None


def _pickles(value) -> bool:
    try:
        _Structure(io.BytesIO()).dump(value)
    except Exception:  # pickle raises many kinds
        return False
    return True


def _stand_in(value):
    return Lost() if callable(value) and not isinstance(value, torch.nn.Module) else None
