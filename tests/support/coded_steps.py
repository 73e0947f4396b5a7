"""Steps with a first moment in 8-bit codes, by kernels and by the stages, each step from one state."""

import torch
from kernel_cases import BOUNDS, by_kernels, by_stages, gradients
from torch import Tensor

INT8 = dict(state_dtype="int8")


def close(p: Tensor, found: dict, q: Tensor, expected: dict, rate: float) -> None:
    """After one step from the same state, with sums in another order. What lies on the border of two codes (or of two 16-bit
    numbers) may go to either; a code does so rarely, and in C only where PyTorch's vectors have no fused multiply-add."""
    bound = BOUNDS[p.dtype]
    torch.testing.assert_close(p.detach(), q.detach(), rtol=bound, atol=2e-6 * rate + 2e-7 if bound < 1e-4 else 1e-6)
    for key, want in expected.items():
        if want.dtype == torch.int8:
            apart = (found[key].int() - want.int()).abs()
            assert apart.max() <= 1 and apart.sum() <= 1 + want.numel() // 500, key
        else:
            torch.testing.assert_close(found[key], want, rtol=1e-5, atol=0)


def beside_the_stages(build, steps: int = 3) -> None:
    """build() -> (optimizer, parameters), twice alike: the kernels must take every tensor of one, the stages the other's."""
    (optimizer, parameters), (twin, others) = build(), build()
    by_kernels(optimizer), by_stages(twin)
    for step in range(steps):
        gradients(parameters, step), gradients(others, step)
        optimizer.step()
        twin.step()
        for p, q in zip(parameters, others, strict=True):
            found, expected = optimizer.state[p], twin.state[q]
            assert found.keys() == expected.keys()
            close(p, found, q, expected, optimizer.param_groups[0]["lr"])
            q.data.copy_(p.data)
            for key, value in found.items():
                expected[key].copy_(value)
