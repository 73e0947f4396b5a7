"""What the graph of a loss holds, read before backward runs: leaves, sparse tables, reentrant checkpoints.

torch.utils.checkpoint(use_reentrant=True) hides a part of the model behind one node that runs its own backward inside
the outer one. Which weights it uses cannot be seen from outside, so a graph is described by what such a node will call;
two graphs of equal description use the same weights, unless the function itself chooses them by something else.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowmem.optim.core.checks import NO_SPARSE
from lowmem.optim.core.hooks import owner


@dataclasses.dataclass(frozen=True)
class Graph:
    """leaves: tensors that backward fills the .grad of (not those hidden in reentrant checkpoints). sparse: those of them
    with sparse gradients. segments: a hashable description of the reentrant checkpoints, () when there are none.
    """

    leaves: tuple[Tensor, ...]
    sparse: tuple[Tensor, ...]
    segments: tuple

    @property
    def signature(self) -> tuple:
        """Equal for graphs that use the same parameters inside and outside the same reentrant checkpoints."""
        return frozenset(id(leaf) for leaf in self.leaves if isinstance(leaf, nn.Parameter)), self.segments


def evaluate(closure: Callable[[], Tensor]) -> Tensor:
    """The closure's loss with its graph; TypeError for anything else."""
    with torch.enable_grad():
        loss = closure()
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TypeError("the closure must return the loss as a scalar tensor and must not call backward itself")
    return loss


def describe(value) -> str:
    """A description of what was passed as a loss, for error messages."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def scan_graph(loss: Tensor) -> Graph:
    """Walk the graph of loss once (about a microsecond per node)."""
    seen, stack = set(), [loss.grad_fn]
    leaves, sparse, segments = {}, {}, []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions]
        stack.extend(parents)
        if not parents and hasattr(node, "variable"):
            leaves[node.variable] = None
        elif getattr(node, "_saved_sparse", False):
            sparse.update({parent.variable: None for parent in parents if hasattr(parent, "variable")})
        elif hasattr(node, "run_function") or "Checkpoint" in type(node).__name__:
            segments.append(_describe(getattr(node, "run_function", object())))
    return Graph(tuple(leaves), tuple(sparse), tuple(segments))


def read_graph(fused, loss: Tensor) -> Graph:
    """Look at the graph of a fused optimizer's loss before anything runs; refuse what could not be carried through."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TypeError(f"backward takes the loss, a tensor of one number, or a closure; got {describe(loss)}")
    if loss.grad_fn is None:
        raise RuntimeError("the loss has no graph: it depends on no parameter, or the graph was freed")
    graph = scan_graph(loss)
    for p in graph.sparse:
        raise RuntimeError(f"{fused.inner.name(p) if p in fused.params.group_of else 'an embedding'}: {NO_SPARSE}")
    for p in others(fused, graph):
        if owner(p) is not None:
            name = fused.inner.members.names.get(p, f"a parameter of shape {tuple(p.shape)}")
            raise RuntimeError(
                f"{name}: belongs to another optimizer that works inside backward; one loss can feed only one of them, so "
                "use one with parameter groups, give the other parameters an optimizer with step(), or freeze them with "
                "requires_grad_(False) for this loss (the discriminator while the generator trains)"
            )
    return graph


def others(fused, graph: Graph) -> list[Tensor]:
    """Leaves outside the optimizer: those seen in the graph, and the model's, which a checkpoint may hide."""
    model = fused.inner.model() if graph.segments else None
    hidden = model.parameters() if model is not None else ()
    return list(dict.fromkeys(p for p in (*graph.leaves, *hidden) if p not in fused.params.group_of))


def _describe(x, depth: int = 0):
    """A hashable description of a function or value, equal when it leads to the same modules and parameters.

    What cannot be described is equal to nothing, so that its graph is measured again each time.
    """
    if depth > 6:
        return object()
    deeper = functools.partial(_describe, depth=depth + 1)
    if isinstance(x, (nn.Module, nn.Parameter)):
        return id(x)
    if isinstance(x, (type(None), bool, int, float, str)):
        return type(x), x
    if isinstance(x, Tensor):
        return Tensor  # activations differ in every step
    if isinstance(x, (list, tuple)):
        return tuple(map(deeper, x))
    if isinstance(x, dict):
        return tuple((key, deeper(value)) for key, value in x.items())
    if isinstance(x, functools.partial):
        return deeper((x.func, x.args, x.keywords))
    if isinstance(x, types.MethodType):
        return deeper((x.__self__, x.__func__))
    if isinstance(x, types.FunctionType):
        cells = [cell.cell_contents for cell in x.__closure__ or ()]
        return x.__code__, deeper((x.__defaults__, x.__kwdefaults__, cells))
    return object() if callable(x) else type(x)


def random_states(parameters) -> dict:
    """States of the random generators that forward may use: the CPU's and those of the parameters' devices."""
    devices = {p.device for p in parameters if p.device.type not in ("cpu", "meta")}
    return {"cpu": torch.get_rng_state(), **{d: getattr(torch, d.type).get_rng_state(d) for d in devices}}


def restore(states: dict) -> None:
    """Restore the generators to what random_states returned."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            getattr(torch, device.type).set_rng_state(state, device)
