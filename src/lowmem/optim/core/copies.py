"""What a copied or pickled optimizer keeps of the objects it refers to: its model, and a user's function."""

from __future__ import annotations

import copy
import io
import pickle

import torch


class Lost:
    """Placeholder for a function that could not be pickled; it raises only when it is called."""

    def __call__(self, *_arguments):
        raise RuntimeError(
            "no_decay was a lambda or local function, which pickle cannot store; give new groups their own "
            "weight_decay, or write no_decay as name patterns"
        )


class Link:
    """A reference that copies and pickles include where possible and otherwise drop; it never makes them fail."""

    def __init__(self, target):
        self.target = target

    def __deepcopy__(self, memo: dict) -> Link:
        if id(self.target) in memo:
            return Link(memo[id(self.target)])
        try:
            return Link(copy.deepcopy(self.target, memo))
        except Exception:  # a model may hold what cannot be copied: process groups, files
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
    except Exception:  # pickle raises many exception types
        return False
    return True


def _stand_in(value):
    return Lost() if callable(value) and not isinstance(value, torch.nn.Module) else None
