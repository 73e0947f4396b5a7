"""What a rule sees of one tensor, and how its stages run on a tensor that is complete on this process.

A rule is a few stages: functions of a TensorView, which never loop over tensors, and never communicate. Where a stage
needs sums over a whole tensor (a block's mean square, a norm), it returns those over what it sees, and the next stage finds
the complete ones in `totals`, by the stage's name. How sums are completed over processes: sharded_update.py.

Every form has a frame, the axes its stages work on; tensors in it are views of what is stored.

    form "flat"    frame (numel,)            the tensor as one row
    form "shaped"  frame shape               the tensor as it is (a scalar as (1,))
    form "blocks"  frame (1, count, 1)       pieces (outer, count, run): block b is x[:, b, :]

State that is smaller than the parameter (block scalars, row and column means) has length 1 or full length along each
axis of the frame; so have sums. A piece (layout.py) knows which range of the frame it covers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowmem.blocks import ParamBlocks
from lowmem.optim.core.layout import Layout, Piece
from lowmem.optim.core.transfers import upload


class Update(NamedTuple):
    """One parameter in one step, as the driver hands it to a way of execution.

    group: its settings. param, grad, state: what this process stores. hyper: the step's numbers, from the rule's scalars(),
    with "factor", by which the gradient is still to be multiplied. layout: its pieces.
    """

    group: dict
    param: nn.Parameter | Tensor
    grad: Tensor
    state: dict[str, Tensor]
    hyper: dict
    layout: Layout


@dataclasses.dataclass
class TensorView:
    """What a stage sees of one piece: param, grad and state in the rule's form (views, fp32 or fp64), and hyper, the
    step's numbers.

    frame: full size of the frame, whatever part of it this piece is. size: elements of each whole block (or tensor).
    scratch: tensors that a stage leaves for the next one.
    """

    param: Tensor | None
    grad: Tensor | None
    state: dict[str, Tensor]
    hyper: dict
    frame: tuple[int, ...] = ()
    size: int = 0
    scratch: dict[str, Tensor] = dataclasses.field(default_factory=dict)


# -- stages --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a rule: run(w, totals) on each piece; then its sums are complete, and settle(w, sums) runs once.

    run returns a list of sums (None for none). settle gets the complete ones, with the small state only (w.param and w.grad
    may be missing); what it returns takes their place. Later stages find the result as totals[name], where name is that of
    the function `settle`, or of `run` where there is none. sums: what each sum has full length along (per_block, ...).
    pure: run changes no tensor.
    """

    run: Callable
    settle: Callable | None = None
    sums: tuple[Callable[[int], list[tuple[int, ...]]], ...] = ()
    pure: bool = False
    name: str = ""

    def __post_init__(self):
        object.__setattr__(self, "name", self.name or (self.settle or self.run).__name__)

    def axes(self, ndim: int) -> list[tuple[int, ...]]:
        """For each sum, the axes of a frame of so many axes along which it has full length."""
        return [axes for kind in self.sums for axes in kind(ndim)]


def per_tensor(ndim: int) -> list[tuple[int, ...]]:
    """One number for the whole tensor."""
    return [()]


def per_block(ndim: int) -> list[tuple[int, ...]]:
    """One number per block, in the form "blocks"."""
    return [(1,)]


def per_row(ndim: int) -> list[tuple[int, ...]]:
    """One number per row of the last two axes; nothing for tensors of fewer axes."""
    return [tuple(range(ndim - 1))] if ndim >= 2 else []


def per_column(ndim: int) -> list[tuple[int, ...]]:
    """One number per column of the last two axes; nothing for tensors of fewer axes."""
    return [(*range(ndim - 2), ndim - 1)] if ndim >= 2 else []


def per_slice(ndim: int) -> list[tuple[int, ...]]:
    """For every axis, one number per slice along it."""
    return [(axis,) for axis in range(ndim)]


def run_stages(stages: tuple[Stage, ...], view: TensorView) -> None:
    """Stages in order on one tensor that is complete here: what a stage returns is already the total."""
    totals: dict = {}
    for stage in stages:
        found = stage.run(view, totals)
        totals[stage.name] = found if stage.settle is None else stage.settle(view, found)


# -- views ---------------------------------------------------------------------------------------------------------------


def views(
    form: str, lay: Layout, p: Tensor, g: Tensor, state: dict, replicated: tuple[str, ...], hyper: dict
) -> list[TensorView]:
    """Stored tensors as a rule's stages see them, one view per piece; replicated: names of state kept whole in the frame."""
    found = []
    for piece in lay.pieces:
        s = {
            key: narrowed(in_frame(value, form), piece.ranges) if key in replicated else view_of(value, piece)
            for key, value in state.items()
        }
        found.append(TensorView(view_of(p, piece), view_of(g, piece), s, hyper, lay.frame, piece.size))
    return found


def view_of(x: Tensor, piece: Piece) -> Tensor:
    """A stored tensor (contiguous) as the piece sees it: a view."""
    if piece.at is not None:
        x = x.view(-1)[piece.at[0] : piece.at[1]]
    if piece.view is not None:
        x = x.view(piece.view)
    if piece.cut is not None:
        start, stop, inner = piece.cut
        if x.shape[1] != stop - start:
            x = x[:, start:stop]
        x = x.unflatten(1, inner)
    return x


def narrowed(x: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """The part of a small tensor in the frame that a piece covers; axes of length 1 belong to everybody."""
    for axis, (start, length) in enumerate(ranges):
        if x.ndim and x.shape[axis] not in (1, length):
            x = x.narrow(axis, start, length)
    return x


def in_frame(x: Tensor, form: str) -> Tensor:
    """Small state as the frame has it: block scalars (count,) as (1, count, 1)."""
    return x.view(1, -1, 1) if form == "blocks" else x


# -- compiled ------------------------------------------------------------------------------------------------------------

_compiled: dict = {}


def compiled_stages(stages: tuple[Stage, ...]) -> Callable:
    """One compiled function per rule, with dynamic shapes: it recompiles per shape class, not per parameter."""
    if stages not in _compiled:

        def run(p: Tensor, g: Tensor, state: dict, hyper: dict, frame: tuple[int, ...], size: int) -> None:
            run_stages(stages, TensorView(p, g, state, hyper, frame, size))

        _compiled[stages] = torch.compile(run, dynamic=True)
    return _compiled[stages]


def as_tensors(hyper: dict, device: torch.device) -> dict:
    """hyper with its floats as fp32 tensors on the device: one upload per step, kept in hyper itself under the device.

    Each lies at a multiple of 16 bytes, since compiled code copies an input that does not.
    """
    if device not in hyper:
        numbers = {key: value for key, value in hyper.items() if isinstance(value, float)}
        table = torch.zeros(len(numbers), 4, device="cpu")
        table[:, 0] = torch.tensor(list(numbers.values()), device="cpu")
        others = {key: value for key, value in hyper.items() if isinstance(key, str)}
        hyper[device] = {**others, **dict(zip(numbers, upload(table, device)[:, 0].unbind()))}
    return hyper[device]


# -- what rules share ----------------------------------------------------------------------------------------------------


def axpy(x: Tensor, y: Tensor, a) -> None:
    """x += a * y in place, for a number or a 0-dim tensor."""
    x.add_(y * a) if isinstance(a, Tensor) else x.add_(y, alpha=a)


def shrink(x: Tensor, factor) -> None:
    """x *= factor in place, for a number (1 costs nothing) or a 0-dim tensor: decoupled weight decay."""
    if isinstance(factor, Tensor) or factor != 1:
        x.mul_(factor)


def add_square(v: Tensor, g: Tensor, a) -> None:
    """v += a * g * g in place, for a number or a 0-dim tensor."""
    v.addcmul_(g, g * a) if isinstance(a, Tensor) else v.addcmul_(g, g, value=a)


def adam_scalars(group: dict, step) -> dict:
    """Numbers of one Adam step: decay_factor = 1 - lr * wd, step_size = lr / (1 - beta1^t), inv_sqrt_bias_correction2 =
    (1 - beta2^t)^-1/2.

    1 - beta is taken here, in double: of an fp32 beta it would be off by 1e-5.
    """
    beta1, beta2 = group["betas"]
    return {
        "lr": group["lr"],
        "weight_decay": group["weight_decay"],
        "beta1": beta1,
        "beta2": beta2,
        "one_minus_beta1": 1 - beta1,
        "one_minus_beta2": 1 - beta2,
        "eps": group["eps"],
        "largest": math.inf,  # of a squared gradient: as in torch.optim.AdamW
        "decay_factor": 1 - group["lr"] * group["weight_decay"],
        "step_size": group["lr"] / (1 - beta1**step),
        "inv_sqrt_bias_correction2": (1 - beta2**step) ** -0.5,
    }


Way = Callable[[Any, list[Update]], list[Update]]  # (optimizer, updates): makes those that it can, returns the others


class Rule:
    """What happens to one tensor: the part of an optimizer that its file brings, with defaults for most of it.

    form: how stages see tensors, see above. stages: what happens to one piece, and which sums over all pieces it needs.
    uses_blocks: whether its second moment is one number per block. in_codes: whether its first moment has an 8-bit form.
    optional_state: (name of state, setting above 0 that needs it). Faster ways over many tensors at once, tried before the
    stages: ways_of_codes on a CPU for a first moment in 8 bits, ways_on_cpu, ways_elsewhere; ways_that_skip: those of
    them that can leave a step out on the device (overflow.py).
    """

    form = "flat"
    uses_blocks = False
    in_codes = False
    beta_count, eps_count = 2, 1
    optional_state: tuple[tuple[str, str], ...] = ()
    stages: tuple[Stage, ...] = ()
    ways_of_codes: tuple[Way, ...] = ()
    ways_on_cpu: tuple[Way, ...] = ()
    ways_elsewhere: tuple[Way, ...] = ()
    ways_that_skip: tuple[Way, ...] = ()

    @staticmethod
    def init(p: Tensor, group: dict, blocks: ParamBlocks, dtype: torch.dtype) -> dict[str, Tensor]:
        """State of one parameter before its first step, {key: tensor} on what this process holds; none by default."""
        return {}

    @staticmethod
    def replicated(blocks: ParamBlocks) -> tuple[str, ...]:
        """Keys of the state that every process holds whole, because it belongs to blocks and not to elements."""
        return ()

    @staticmethod
    def late(state: dict) -> None:
        """Optional state was made after the first step."""

    @staticmethod
    def reduction(group: dict) -> str:
        """How sums over parts of a block are joined over processes: "sum" or "max"."""
        return "sum"

    @staticmethod
    def scalars(group: dict, step: float) -> dict:
        """Numbers of a step that all tensors of a group share, in double: hyper of a TensorView."""
        return {"lr": group["lr"], "weight_decay": group["weight_decay"]}
