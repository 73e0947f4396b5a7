"""First moments in 8-bit codes: the kernels' numbers are those of the stages, for every layout, dtype and rule."""

import math

import pytest
import torch
import zoo
from block_layouts import layout, optimizer_over
from coded_steps import INT8, beside_the_stages, close
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import LAYOUTS, by_kernels, by_stages, gradients, started
from torch import nn

from lowmem.blocks import one_block
from lowmem.optim import AdamMini, AdamW, FusedBackward
from lowmem.optim.core import gpu_step
from lowmem.optim.core.eight_bit import decoded
from lowmem.optim.core.rule import Update

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_kind_of_block_gives_the_numbers_of_the_stages(name, dtype):
    beside_the_stages(lambda: optimizer_over([LAYOUTS[name]], 0, dtype=dtype, **INT8))


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(st.lists(layout(), min_size=1, max_size=4, unique_by=lambda b: b.name), st.sampled_from(DTYPES))
def test_any_block_layout_gives_the_numbers_of_the_stages(layouts, dtype):
    beside_the_stages(lambda: optimizer_over(layouts, 0, dtype=dtype, **INT8), steps=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adamw_gives_the_numbers_of_its_stages(dtype):
    layouts = [LAYOUTS["coordinates"], LAYOUTS["whole tensor"]]
    beside_the_stages(lambda: optimizer_over(layouts, 0, dtype=dtype, rule=AdamW, **INT8))


@pytest.mark.parametrize("clip", [None, 0.01])
def test_inside_backward_with_the_clip_coefficient_in_three_launches_at_most(clip):
    def train(way):
        model = zoo.language_model()
        rule = way(AdamMini(model, lr=1e-2, **INT8))
        optimizer = FusedBackward(rule, max_grad_norm=clip)
        launches = started(lambda: zoo.apply(optimizer, zoo.language_loss(model, 0)))
        return {name: (p, rule.state[p]) for name, p in model.named_parameters()}, launches

    (found, launches), (expected, _) = train(by_kernels), train(by_stages)
    for name, (q, state) in expected.items():
        close(*found[name], q, state, 1e-2)
    assert launches.count("codes") == len(expected) and len(launches) <= 3 * len(expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_no_number_makes_its_block_of_codes_nan_and_no_other(bad):
    optimizer, [p] = optimizer_over([LAYOUTS["whole tensor"]], 0, rule=AdamW, **INT8)
    gradients([p], 0)
    by_kernels(optimizer).step()
    gradients([p], 1)
    p.grad[300] = bad
    optimizer.step()
    moment = decoded(optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_scale"])
    assert moment[256:512].isnan().all() and moment[:256].isfinite().all() and moment[512:].isfinite().all()


def test_stochastic_codes_are_neighbours_and_right_on_average():
    blocks, draws = one_block("w", (600,)), 40
    total = torch.zeros(600, dtype=torch.float64)
    for seed in range(draws):
        optimizer, [p] = optimizer_over([blocks], 0, rounding="stochastic", **INT8)
        gradients([p], 0)
        torch.manual_seed(seed)
        by_kernels(optimizer).step()
        state = optimizer.state[p]
        moment, scale = decoded(state["exp_avg"], state["exp_avg_scale"]).double(), state["exp_avg_scale"]
        exact = 0.1 * p.grad.double()
        size = scale.repeat_interleave(256)[:600].double()
        step = (2 * (exact.abs() / size).sqrt() / 127 + 1 / 127**2) * size  # from one code to the next, here or above
        assert ((moment - exact).abs() <= 1.02 * step).all()
        total += (moment - exact) / step
    assert total.abs().max() > 0.5 and total.sum().abs() < 3.5 * 0.5 * math.sqrt(draws * 600)


def left(**given) -> int:
    """How many of a tensor's steps are left to the stages."""
    optimizer, parameters = optimizer_over([LAYOUTS["rows"]], 0, **{**INT8, **given})
    gradients(parameters, 0)
    optimizer.step()
    group = optimizer.param_groups[0]
    hyper = {**optimizer.scalars(group, 1), "factor": 1.0}
    updates = [Update(group, p, p.grad, optimizer.state[p], hyper, optimizer.layout(p)) for p in parameters]
    return len(gpu_step.adam(optimizer, updates))


def test_8_more_bits_of_weights_other_statistics_and_too_many_strips_are_left_to_the_stages(monkeypatch):
    assert left() == 0
    assert left(dtype=torch.bfloat16, rounding="corrected") == 1
    assert left(reduce="max") == 1
    monkeypatch.setattr(gpu_step, "MOST_STRIPS", 0)
    assert left() == 1


def test_scales_of_another_size_are_refused_and_nothing_is_overrun():
    p = nn.Parameter(torch.ones(600))
    optimizer = AdamW([p], **INT8)
    p.grad = torch.ones(600)
    by_kernels(optimizer).step()
    state = optimizer.state[p]
    state["exp_avg_scale"], before = state["exp_avg_scale"][:2], state["exp_avg"].clone()
    with pytest.raises(RuntimeError, match="exp_avg_scale has 2 elements, not 3"):
        del optimizer.by_stages
        optimizer.step()
    assert torch.equal(before, state["exp_avg"])
