"""The Triton kernels beside the stages: the same training twice. On a GPU, or on a CPU in Triton's interpreter."""

import pytest
import torch
from block_layouts import optimizer_over, run
from torch import Tensor

from lowmem.blocks import along, coordinates, one_block
from lowmem.optim.core import gpu_step

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}  # fp32: of the largest; else one unit
SCALARS = 1e-6  # of the largest v

LAYOUTS = {
    "rows": along("rows", (6, 40), "neuron", ((0, 6, 1),)),
    "rows of odd length": along("odd", (5, 37), "neuron", ((0, 5, 1),)),
    "short heads": along("heads", (16, 10), "head", ((0, 16, 2),)),
    "long heads": along("heads", (24, 24), "head", ((0, 24, 8),)),
    "whole tensor": one_block("norm", (701,)),
    "scalar": one_block("scalar", ()),
    "coordinates": coordinates("bias", (141,)),
    "columns": along("columns", (13, 24), "neuron", ((0, 24, 1),), axis=1),
    "fused columns": along("fused", (20, 90), "mixed", ((0, 30, 5), (30, 60, 5), (60, 90, 1)), axis=1),
    "fused rows": along("qkv", (90, 20), "mixed", ((0, 30, 5), (30, 60, 5), (60, 90, 1))),
    "filters": along("filters", (3, 8, 3, 3), "neuron", ((0, 8, 4),), axis=1),
    "experts": along("experts", (3, 8, 10), "neuron", ((0, 8, 1),), stack=1),
    "transposed experts": along("experts", (3, 10, 8), "neuron", ((0, 8, 1),), axis=1, stack=1),
    "merged axes": along("merged", (4, 6, 10), "neuron", ((0, 24, 3),), merge=2),
}


def refuse(*arguments):
    """In the stages' place, where nothing may be left to them."""
    raise AssertionError("a tensor went through the stages")


def by_stages(optimizer):
    """The optimizer without any fast way."""
    optimizer.__dict__.pop("by_stages", None)
    optimizer.ways_of_codes = optimizer.ways_on_cpu = optimizer.ways_elsewhere = ()
    return optimizer


def by_kernels(optimizer):
    """The optimizer, in which the stages must not run."""
    optimizer.by_stages = refuse
    return optimizer


def close(found: list[Tensor], expected: list[Tensor], bounds: dict = BOUNDS) -> None:
    """Each tensor within its bound: weights and moments by dtype, block scalars (fp32 beside 16-bit) as fp32."""
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape, a.isfinite().all()) == (b.dtype, b.shape, True)
        a, b, bound = a.double(), b.double(), bounds[a.dtype]
        allowed = bound * b.abs().max() if bound < 1e-4 else bound * b.abs() + 1e-6 * b.abs().max()
        assert ((a - b).abs() <= allowed).all(), ((a - b).abs() / b.abs().max()).max()


def both(layouts, device="cpu", steps=3, **settings) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and state after training with the kernels and with the stages."""
    optimizer, parameters = optimizer_over(layouts, 0, device=device, **settings)
    found = run(by_kernels(optimizer), parameters, steps)
    optimizer, parameters = optimizer_over(layouts, 0, device=device, **settings)
    return found, run(by_stages(optimizer), parameters, steps)


def started(step) -> list[str]:
    """Names of the kernels that a call starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_step, "launched", [])
        step()
        return gpu_step.launched


def gradients(parameters, step: int) -> None:
    """Random gradients that a step number decides."""
    for k, p in enumerate(parameters):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(97 * step + k)).to(p)
