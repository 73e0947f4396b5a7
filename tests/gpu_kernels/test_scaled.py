"""torch.amp.GradScaler before the kernels: they unscale, and leave a step out, by a number that the host has not read."""

import pytest
import torch
import zoo
from block_layouts import optimizer_over
from kernel_cases import LAYOUTS, by_kernels, gradients, started
from torch import nn

from lowmem.optim import SGD, AdamMini, AdamW

SCALE = 1024.0  # a power of two, so that gradients times it lose no bit
CASES = {name: ([blocks], dict(rule=AdamMini)) for name, blocks in LAYOUTS.items()}
CASES |= {
    "AdamW": ([LAYOUTS["coordinates"], LAYOUTS["rows"]], dict(rule=AdamW, state_dtype=torch.float32)),
    "codes, shared": ([LAYOUTS["fused columns"], LAYOUTS["whole tensor"]], dict(rule=AdamMini, state_dtype="int8")),
    "codes": ([LAYOUTS["rows"]], dict(rule=AdamW, state_dtype="int8")),
}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def tell(optimizer, scale: float | None, found: float) -> None:
    """Set what GradScaler sets."""
    optimizer.grad_scale = None if scale is None else torch.tensor(scale)
    optimizer.found_inf = torch.tensor(found)


def trained(layouts, dtype, scale: float, **settings):
    """Weights and state after three steps, the second of which overflows under a scaler and is missing without one."""
    torch.manual_seed(0)
    optimizer, parameters = optimizer_over(layouts, 0, dtype=dtype, rounding="stochastic", **settings)
    by_kernels(optimizer)
    for step in range(3):
        gradients(parameters, step)
        if scale:
            torch._foreach_mul_([p.grad for p in parameters], scale)
            parameters[0].grad.view(-1)[-1] = torch.inf if step == 1 else parameters[0].grad.view(-1)[-1]
            tell(optimizer, scale, float(step == 1))
        if scale or step != 1:
            optimizer.step()
        else:
            torch.randint(1 << 31, ())  # the seed of the step that was not made
    return [p.detach() for p in parameters], zoo.state_tensors(optimizer)


@dtypes
@pytest.mark.parametrize("name", CASES)
def test_every_kernel_unscales_and_leaves_out_what_overflowed_bit_for_bit(name, dtype):
    layouts, settings = CASES[name]
    found, state = trained(layouts, dtype, SCALE, **settings)
    expected, usual = trained(layouts, dtype, 0.0, **settings)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert zoo.same(state, usual)


@dtypes
def test_descent_unscales_and_leaves_out_what_overflowed(dtype):
    p = nn.Parameter(torch.randn(141).to(dtype))
    optimizer = by_kernels(SGD([p], lr=1e-2, weight_decay=0.1, decoupled=True))
    before = p.detach().clone()
    p.grad = torch.full_like(p, torch.inf)
    tell(optimizer, SCALE, 1.0)
    optimizer.step()
    assert torch.equal(p, before)
    p.grad = torch.full_like(p, SCALE)
    tell(optimizer, SCALE, 0.0)
    optimizer.step()
    assert torch.allclose(p.float(), before.float() * 0.999 - 0.01, rtol=0, atol={2: 0.02, 4: 1e-6}[p.element_size()])


def test_a_scaler_costs_no_launch_of_ours_and_unscaled_gradients_are_taken_as_they_are():
    def names(scale):
        optimizer, parameters = optimizer_over(list(LAYOUTS.values())[:3], 0)
        gradients(parameters, 0)
        if scale is not False:
            tell(optimizer, scale, 0.0)
        return started(by_kernels(optimizer).step), [p.detach() for p in parameters]

    expected, weights = names(False)
    for scale in (None, 1.0):
        launches, found = names(scale)
        assert launches == expected and all(map(torch.equal, found, weights))
