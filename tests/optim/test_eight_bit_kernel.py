"""8-bit first moments in C: the numbers of the stages, the bits of fp32 moments' second moments, and no copy of a moment."""

import pytest
import torch
import zoo
from block_layouts import LARGE, layout, optimizer_over, run
from coded_steps import INT8, beside_the_stages, close
from compiler import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import LAYOUTS, by_kernels, by_stages
from torch import nn

from lowmem.blocks import along
from lowmem.memory.tracker import Tracker
from lowmem.optim import AdamMini, AdamW, FusedBackward, Lion

pytestmark = needs_compiler
MANY = [*LARGE, along("whole blocks of codes", (700, 512), "neuron", ((0, 700, 1),))]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(layout(), min_size=1, max_size=4, unique_by=lambda b: b.name), st.integers(0, 1000))
def test_any_block_layout_gives_the_numbers_of_the_stages(layouts, seed):
    beside_the_stages(lambda: optimizer_over(layouts, seed, **INT8))


@pytest.mark.parametrize("layouts", [*([blocks] for blocks in LAYOUTS.values()), MANY], ids=[*LAYOUTS, "large"])
def test_every_kind_of_block_and_sizes_of_many_chunks_give_them_too(layouts):
    beside_the_stages(lambda: optimizer_over(layouts, 0, **INT8), steps=2)


@pytest.mark.parametrize("rule", [AdamW, Lion])
def test_rules_of_elements_give_them_too(rule):
    def build():
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape)) for shape in ((300, 700), (5,), (3, 4, 5), (256,), (70_001,))]
        return rule(parameters, lr=1e-2, weight_decay=0.1, **INT8), parameters

    beside_the_stages(build)


def test_second_moments_have_the_bits_that_they_have_beside_a_moment_in_fp32():
    (coded, parameters), (plain, others) = optimizer_over(MANY, 0, **INT8), optimizer_over(MANY, 0)
    run(coded, parameters), run(plain, others)
    for p, q in zip(parameters, others, strict=True):
        assert torch.equal(coded.state[p]["exp_avg_sq"], plain.state[q]["exp_avg_sq"])


def test_any_number_of_threads_gives_the_same_bits():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(*optimizer_over(MANY, 0, **INT8), steps=2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_clip_coefficient_inside_backward_goes_along():
    def train(way):
        model = zoo.language_model()
        rule = way(AdamMini(model, lr=1e-3, **INT8))
        optimizer = FusedBackward(rule, max_grad_norm=0.05)
        zoo.apply(optimizer, zoo.language_loss(model, 0))
        assert optimizer.grad_norm > 0.05
        return {name: (p.detach(), rule.state[p]) for name, p in model.named_parameters()}

    found, expected = train(by_kernels), train(by_stages)
    for name, (q, state) in expected.items():
        close(*found[name], q, state, 1e-3)


@pytest.mark.parametrize("rule", [AdamMini, AdamW, Lion])
def test_a_step_allocates_rates_of_blocks_and_nothing_else(rule):
    optimizer, parameters = optimizer_over(MANY, 0, **INT8)
    if rule is not AdamMini:
        optimizer = rule(parameters, lr=1e-2, **INT8)
    run(optimizer, parameters, 1)
    with Tracker() as tracker:
        tracker.mark([t for p in parameters for t in (p, p.grad)], "parameters")
        tracker.mark([t for state in optimizer.state.values() for t in state.values()], "optimizer_state")
        with tracker.during("step", "temporaries"):
            optimizer.step()
    scalars = sum(optimizer.blocks(p).count for p in parameters if optimizer.blocks(p).kind != "coordinate")
    assert tracker.peaks["step"].get("temporaries", 0) <= (4 * scalars if rule is AdamMini else 0) + 64


@pytest.mark.parametrize("what", ["stochastic", "bf16", "max", "strided", "fp64"])
def test_what_c_does_not_take_goes_through_the_stages_with_their_bits(what):
    def train(way):
        torch.manual_seed(0)
        given = {"stochastic": dict(rounding="stochastic"), "max": dict(reduce="max")}.get(what, {})
        dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(what, torch.float32)
        optimizer, parameters = optimizer_over([LAYOUTS["rows"], LAYOUTS["columns"]], 0, dtype=dtype, **given, **INT8)
        if what == "strided":
            for p in parameters:
                p.data = p.data.t().contiguous().t()
        return run(way(optimizer), parameters)

    assert all(torch.equal(a, b) for a, b in zip(train(lambda o: o), train(by_stages), strict=True))
