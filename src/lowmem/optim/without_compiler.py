"""torch.optim.Optimizer without the import of PyTorch's compiler.

torch marks four methods as not to be compiled, and the mark imports torch._dynamo at their first call: about two seconds
of every process, more than many a run here takes. Where the compiler is loaded already, the marked methods are used.
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
        """As in torch."""
        return _call("state_dict", self)

    def load_state_dict(self, state_dict: dict) -> None:
        """As in torch."""
        _call("load_state_dict", self, state_dict)


def _call(name: str, *arguments):
    method = getattr(torch.optim.Optimizer, name)
    return (method if "torch._dynamo" in sys.modules else getattr(method, "__wrapped__", method))(*arguments)
