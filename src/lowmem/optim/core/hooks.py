"""The hook by which an optimizer gets a gradient inside backward. It does not keep the optimizer alive, nor the weights."""

from __future__ import annotations

import weakref

from torch import Tensor

PLAIN_BACKWARD = (
    "loss.backward() was called while {} owns the gradients; call opt.backward(loss) (with loss_scale='dynamic' instead of "
    "a GradScaler; in Lightning with automatic_optimization = False), or wrap a plain backward in `with opt.paused():`"
)


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


def wrapped_in(optimizer):
    """The optimizer inside a wrapper that subclasses it (Lightning and Fabric do), which has copies of its attributes."""
    inside = (vars(optimizer).get(key) for key in ("_optimizer", "optimizer"))
    return next((o for o in inside if o is not None and o is not optimizer and hasattr(o, "backward")), None)


def check_empty(result) -> None:
    """RuntimeError when a closure that comes after backward has made a loss of its own."""
    if isinstance(result, Tensor) and result.grad_fn is not None:
        raise RuntimeError(
            "step(closure) after opt.backward(loss): the weights are updated already; call one of the two"
        )
