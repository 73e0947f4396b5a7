"""The hooks by which an optimizer gets gradients inside backward. They keep neither the optimizer nor the weights alive."""

from __future__ import annotations

import collections
import operator
import weakref

import torch
from torch import Tensor, nn

from lowmem.blocks.layers import is_lazy

PLAIN_BACKWARD = (
    "loss.backward() was called while {} owns the gradients; call opt.backward(loss) (with loss_scale='dynamic' instead of "
    "a GradScaler; in Lightning with automatic_optimization = False), or wrap a plain backward in `with opt.paused():`"
)


class Hook:
    """Calls a method of its owner with the parameter whose gradient is complete; does nothing once the owner is deleted.

    Autograd holds hooks where Python's garbage collector does not look, so a bound method would keep optimizer, state and
    weights for ever.
    """

    def __init__(self, owner, method: str):
        self._owner, self._method = weakref.ref(owner), method

    @property
    def owner(self):
        """The optimizer that owns it; None once that is deleted."""
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


class HookedParams:
    """The parameters of a FusedBackward: what is known of each, and the hooks on those that train.

    group_of: the group of each. trained: those that train. bundle_of: which arrive together under fully_shard, and
    bundle_size: how many do. handles: of the hooks.
    """

    def __init__(self, fused):
        self._fused = weakref.ref(fused)
        self.group_of: dict[nn.Parameter, dict] = {}
        self.trained: list[nn.Parameter] = []
        self.bundle_of: dict[nn.Parameter, int] = {}
        self.bundle_size: dict[int, int] = {}
        self.handles: dict[nn.Parameter, torch.utils.hooks.RemovableHandle] = {}

    def read(self, groups: list[dict], model: nn.Module | None) -> None:
        """The parameters in the groups that train now."""
        self.group_of = {p: group for group in groups for p in group["params"]}
        trained = [p for p in self.group_of if p.requires_grad and not is_lazy(p)]
        if len(trained) == len(self.trained) and all(map(operator.is_, trained, self.trained)):
            return
        self.trained, self.bundle_of = trained, bundles(model, trained)
        self.bundle_size = collections.Counter(self.bundle_of.values())

    def hook(self) -> None:
        """Hooks on what trains, and on nothing that has left the groups."""
        for p in self.handles.keys() - self.group_of.keys():
            self.handles.pop(p).remove()
        for p in self.trained:
            if p not in self.handles:
                self.handles[p] = p.register_post_accumulate_grad_hook(Hook(self._fused(), "_arrived"))

    def unhook(self) -> None:
        """Remove all hooks."""
        for handle in self.handles.values():
            handle.remove()
        self.handles = {}


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


def bundles(model: nn.Module | None, parameters) -> dict[nn.Parameter, int]:
    """Which parameters arrive together, {parameter: number of its bundle}: those of one fully_shard group.

    Parameters of no such group are left out: each is used alone, as it arrives.
    """
    if model is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {}
    from torch.distributed.fsdp import FSDPModule

    found, known = {}, set(parameters)
    for number, module in enumerate(m for m in model.modules() if isinstance(m, FSDPModule)):
        for p in module.parameters():  # an inner group comes later and takes its own
            if p in known:
                found[p] = number
    return found
