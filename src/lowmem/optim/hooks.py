"""The hook by which an optimizer gets a gradient inside backward. It does not keep the optimizer alive, nor the weights."""

from __future__ import annotations

import weakref

from torch import Tensor


class Hook:
    """Calls a method of its owner with the parameter whose gradient is complete; does nothing once the owner is gone.

    Autograd holds hooks where Python's garbage collector does not look, so a bound method would keep optimizer, state and
    weights for ever.
    """

    def __init__(self, owner, method: str):
        self._owner, self._method = weakref.ref(owner), method

    @property
    def owner(self):
        return self._owner()

    def __call__(self, p: Tensor) -> None:
        if (owner := self._owner()) is not None:
            getattr(owner, self._method)(p)

    def __deepcopy__(self, memo: dict) -> Hook:
        return Gone()  # a copied weight belongs to nobody until an optimizer takes it

    def __reduce__(self):
        return Gone, ()


class Gone(Hook):
    """What a copy of a hook is."""

    def __init__(self):
        self._owner = lambda: None


def owner(p: Tensor):
    """The optimizer that has a hook on a parameter, if there is one."""
    hooks = (getattr(p, "_post_accumulate_grad_hooks", None) or {}).values()
    return next((hook.owner for hook in hooks if isinstance(hook, Hook) and hook.owner is not None), None)
