"""torch.optim.Optimizer without the import of PyTorch's compiler, and with one place where state is saved and loaded.

torch marks four methods as not to be compiled, and the mark imports torch._dynamo at their first call: about two seconds
of every process, more than many a run here takes. Where the compiler is loaded already, the marked methods are used.

state_dict and load_state_dict run the hooks that torch documents around save() and load(), which subclasses bring: what
a hook returns is what is checked, placed, or handed out.
"""

import sys

import torch


class Optimizer(torch.optim.Optimizer):
    """As torch's, in every respect."""

    def add_param_group(self, group: dict) -> None:
        """As in torch."""
        _call("add_param_group", self, group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch."""
        _call("zero_grad", self, set_to_none)

    def state_dict(self) -> dict:
        """As in torch, hooks included."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        saved = self.save()
        for hook in self._optimizer_state_dict_post_hooks.values():
            replaced = hook(self, saved)
            saved = saved if replaced is None else replaced
        return saved

    def load_state_dict(self, state_dict: dict) -> None:
        """As in torch, hooks included. ValueError, and nothing changed, for a state that does not fit."""
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        self.load(state_dict)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def save(self) -> dict:
        """The state dictionary, before hooks see it."""
        numbers: dict = {}
        for p in (p for group in self.param_groups for p in group["params"]):
            numbers.setdefault(p, len(numbers))
        groups = [{**group, "params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        kept = {numbers.get(p, p): entry for p, entry in self.state.items() if p in numbers or not _is_tensor(p)}
        return {"state": kept, "param_groups": groups}

    def load(self, state_dict: dict) -> None:
        """Take a state dictionary, after hooks have seen it."""
        raise NotImplementedError


def _is_tensor(key) -> bool:
    return isinstance(key, torch.Tensor)  # of a parameter that has left the groups


def _call(name: str, *arguments):
    method = getattr(torch.optim.Optimizer, name)
    return (method if "torch._dynamo" in sys.modules else getattr(method, "__wrapped__", method))(*arguments)
