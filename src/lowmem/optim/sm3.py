"""SM3-II (Anil et al., arXiv 1901.11150): one accumulator per slice of each axis; v is the minimum over a coordinate's slices.

Reference: the authors' google-research/sm3; in PyTorch, torch_optimizer's and pytorch_optimizer's SM3. With beta = 0 the
accumulators only grow (the paper); beta > 0 forgets exponentially. Different on purpose: 1-D tensors keep one
accumulator per coordinate, which is the same as the general rule there.
"""

from typing import Unpack

import torch

from lowmem.optim.core.hyperparameters import Common
from lowmem.optim.core.rule import Stage, TensorView, add_square, axpy, per_slice, shrink
from lowmem.optim.core.rule_optimizer import RuleOptimizer


def candidates(w: TensorView, totals: dict) -> list[torch.Tensor]:
    """v = min over axes of accumulators (+ g^2) + eps, kept for the update; its largest value in every slice of every axis.

    beta and eps go into the accumulators before they are spread over the tensor, which saves two passes over it.
    """
    beta, eps = w.hyper["beta"], w.hyper["eps"]
    accumulators = [w.state[f"accumulator_{axis}"] for axis in range(len(w.frame))]
    spread = [(a * beta if beta > 0 else a) + eps for a in accumulators]
    v = spread[0] if len(spread) == 1 else torch.minimum(*spread[:2])
    for other in spread[2:]:
        v = torch.minimum(v, other)
    add_square(v, w.grad, 1 - beta)
    w.scratch["v"] = v
    if len(spread) == 1:
        return [v.clone()]
    axes = range(v.ndim)
    return [v.amax([a for a in axes if a != axis], keepdim=True) for axis in axes]


def accumulate(w: TensorView, sums: list) -> None:
    """Accumulators become the largest v of their slice, without eps; with beta they also forget."""
    for axis, largest in enumerate(sums):
        accumulator, largest = w.state[f"accumulator_{axis}"], largest - w.hyper["eps"]
        accumulator.copy_(torch.maximum(accumulator, largest) if w.hyper["beta"] > 0 else largest)


def update(w: TensorView, totals: dict) -> None:
    """w -= lr * g / sqrt(v + eps) through momentum."""
    h = w.hyper
    step = w.scratch.pop("v").rsqrt_().mul_(w.grad)
    if h["momentum"] > 0:
        step = w.state["momentum_buffer"].lerp_(step, 1 - h["momentum"])
    shrink(w.param, h["decay_factor"])
    axpy(w.param, step, -h["lr"])


class SM3(RuleOptimizer):
    """SM3-II. State: one number per slice of every axis, plus a momentum tensor where momentum > 0.

    lr: step size. momentum: of the update. beta: 0 sums squares as Adagrad does, above 0 keeps a moving mean. eps: added
    under the root. weight_decay: each step multiplies weights by 1 - lr * weight_decay.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, model, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    form = "shaped"
    optional_state = (("momentum_buffer", "momentum"),)
    stages = (Stage(candidates, accumulate, (per_slice,)), Stage(update))

    def __init__(self, params, lr=0.1, momentum=0.9, beta=0.0, eps=1e-30, weight_decay=0.0, **common: Unpack[Common]):
        super().__init__(
            params, dict(lr=lr, momentum=momentum, beta=beta, eps=eps, weight_decay=weight_decay), **common
        )

    @staticmethod
    def init(p, group, blocks, dtype):
        shape = blocks.shape or (1,)
        state = {}
        for axis, length in enumerate(shape):
            sizes = [length if a == axis else 1 for a in range(len(shape))]
            state[f"accumulator_{axis}"] = torch.zeros(
                sizes, dtype=torch.promote_types(dtype, torch.float32), device=p.device
            )
        if group["momentum"] > 0:
            state["momentum_buffer"] = torch.zeros_like(p, dtype=dtype)
        return state

    @staticmethod
    def replicated(blocks):
        return tuple(f"accumulator_{axis}" for axis in range(max(len(blocks.shape), 1)))

    @staticmethod
    def reduction(group):
        return "max"

    @staticmethod
    def scalars(group, step):
        keys = ("lr", "momentum", "beta", "eps")
        return {**{key: group[key] for key in keys}, "decay_factor": 1 - group["lr"] * group["weight_decay"]}
