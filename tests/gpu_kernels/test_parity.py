"""The numbers of the kernels are those of the stages, for every layout, dtype and rule. In Triton's interpreter."""

import copy

import pytest
import torch
import zoo
from block_layouts import layout, optimizer_over
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import BOUNDS, LAYOUTS, SCALARS, both, by_kernels, by_stages, close, gradients, started
from torch import nn

from lowmem.models import gpt2, llama
from lowmem.optim import SGD, AdamMini, AdamW, FusedBackward, Lomo

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_kind_of_block_gives_the_numbers_of_the_stages(name, dtype):
    found, expected = both([LAYOUTS[name]], dtype=dtype)
    close(found, expected)
    close(found[2:], expected[2:], {**BOUNDS, torch.float32: SCALARS})  # v


@dtypes
def test_all_kinds_at_once_with_moments_of_another_type(dtype):
    layouts = [blocks for name, blocks in LAYOUTS.items() if name not in ("long heads", "transposed experts")]
    close(*both(layouts, dtype=dtype, state_dtype=torch.float32))


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(layout(), min_size=1, max_size=4, unique_by=lambda b: b.name), st.sampled_from(DTYPES))
def test_any_block_layout_gives_the_numbers_of_the_stages(layouts, dtype):
    close(*both(layouts, dtype=dtype, steps=2))


@dtypes
def test_adamw_with_fp32_moments_gives_the_numbers_of_its_stages(dtype):
    layouts = [LAYOUTS["coordinates"], LAYOUTS["rows"]]
    close(*both(layouts, dtype=dtype, rule=AdamW, state_dtype=torch.float32))


@dtypes
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_descent_gives_the_numbers_of_its_stages(dtype, decay):
    def train(way):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((141,), (6, 40), ())]
        optimizer = way(SGD(parameters, lr=1e-2, weight_decay=decay, decoupled=True))
        for step in range(3):
            gradients(parameters, step)
            optimizer.step()
        return [p.detach() for p in parameters]

    close(train(by_kernels), train(by_stages))


MODELS = {
    "llama": lambda: llama.build(n_layer=2, n_head=2, n_embd=16, n_hidden=24, vocab_size=32, block_size=8),
    "gpt2": lambda: gpt2.build(n_layer=2, n_head=2, n_embd=16, vocab_size=33, block_size=8),
}


def trained(name, way, steps=3, **options):
    """(parameters and state after some steps on gradients that change their set, launches of the last step)."""
    torch.manual_seed(0)
    model = MODELS[name]()
    optimizer = way(AdamMini(model, lr=1e-2, weight_decay=0.1, no_decay=lambda name, p: p.ndim < 2, **options))
    for step in range(steps):
        gradients(model.parameters(), step)
        if step == 1:
            next(model.parameters()).grad = None
        launches = started(optimizer.step)
    return [*zoo.snapshot(model).values(), *zoo.state_tensors(optimizer).values()], launches


@pytest.mark.parametrize(("name", "most"), [("llama", 6), ("gpt2", 8)])
def test_a_model_with_two_groups_and_a_changing_set_of_gradients_in_a_few_launches(name, most):
    found, launches = trained(name, by_kernels)
    close(found, trained(name, by_stages)[0])
    assert 0 < len(launches) <= most, launches


def backward(way, model, max_grad_norm=None, steps=3, **options):
    """Weights and state after training inside backward."""
    optimizer = FusedBackward(way(AdamMini(model, lr=1e-2, **options)), max_grad_norm=max_grad_norm)
    zoo.train(optimizer, model, steps)
    return [*zoo.snapshot(model).values(), *zoo.state_tensors(optimizer).values()]


@pytest.mark.parametrize("clip", [None, 0.01])
def test_inside_backward_with_the_clip_coefficient(clip):
    close(backward(by_kernels, zoo.net(), clip), backward(by_stages, zoo.net(), clip))


@pytest.mark.parametrize("name", LAYOUTS)
def test_inside_backward_a_tensor_takes_one_launch_or_three_at_most(name):
    optimizer, [p] = optimizer_over([LAYOUTS[name]], 0)
    gradients([p], 0)
    work = [(optimizer.param_groups[0], p, p.grad)]
    with torch.no_grad():
        launches = started(lambda: by_kernels(optimizer).update(work))
    few = ("rows", "rows of odd length", "short heads", "scalar", "coordinates", "merged axes", "experts")
    assert len(launches) == (1 if name in few else 3)


@dtypes
def test_lomo_clipped_gives_the_numbers_of_its_stages_in_one_launch_per_tensor(dtype):
    def train(way):
        model = zoo.net(dtype)
        optimizer = Lomo(model, lr=1e-2, max_grad_norm=0.05, weight_decay=0.1)
        way(optimizer.inner)
        launches = started(lambda: zoo.train(optimizer, model, 2))
        return list(zoo.snapshot(model).values()), launches

    found, launches = train(by_kernels)
    close(found, train(by_stages)[0])
    assert launches == ["plain"] * 2 * 4, "four tensors, two steps"


def test_unaligned_storage_is_stepped_in_place():
    """Views into one buffer at offsets that no wide load is aligned to, as flat shards are."""
    torch.manual_seed(0)
    buffer = torch.randn(1000)
    p, q = nn.Parameter(buffer[1:334]), nn.Parameter(buffer[1:334].clone())
    margin = buffer[0].item(), buffer[334].item()
    for x, way in ((p, by_kernels), (q, by_stages)):
        optimizer = way(AdamW([x], lr=1e-2))
        x.grad = torch.linspace(-1, 1, 1000)[3:336]
        optimizer.step()
    close([p], [q])
    assert (buffer[0].item(), buffer[334].item()) == margin


def test_a_copied_optimizer_goes_on_with_the_kernels():
    model = zoo.net()
    optimizer = AdamMini(model, lr=1e-2)
    gradients(model.parameters(), 0)
    optimizer.step()
    twin = copy.deepcopy({"model": model, "optimizer": optimizer})
    for m, o in ((model, optimizer), (twin["model"], twin["optimizer"])):
        gradients(m.parameters(), 1)
        by_kernels(o).step()
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(twin["model"]))
