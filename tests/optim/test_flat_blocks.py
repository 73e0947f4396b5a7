"""Block scalars of many tensors in one flat tensor: the bits of the stages, and a step that starts few operations."""

import pytest
import torch
import zoo
from block_layouts import LARGE, layout, optimizer_over, run
from compiler import without_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import by_kernels as nothing_left

from lowmem.models import gpt2, llama
from lowmem.optim import AdamMini, FusedBackward
from lowmem.optim.core import flat_blocks


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """As on a device that has no kernel of its own, however few tensors there are."""
    without_kernel(monkeypatch)
    monkeypatch.setattr(AdamMini, "ways_on_cpu", (flat_blocks.adam_mini,))
    monkeypatch.setattr(flat_blocks, "FEWEST", 1)


def by_stages(make):
    """What make() gives when nothing but the stages runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdamMini, "ways_on_cpu", ())
        return make()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(layout(), min_size=1, max_size=4, unique_by=lambda b: b.name), st.integers(0, 1000))
def test_any_block_layout_gives_the_bits_of_the_stages(layouts, seed):
    optimizer, parameters = optimizer_over(layouts, seed)
    together = run(nothing_left(optimizer), parameters)
    alone = by_stages(lambda: run(*optimizer_over(layouts, seed)))
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    st.lists(layout(), min_size=1, max_size=4, unique_by=lambda b: b.name),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.sampled_from([None, torch.float32]),
)
def test_any_block_layout_in_16_bits_gives_the_bits_of_the_stages(layouts, dtype, state_dtype):
    optimizer, parameters = optimizer_over(layouts, 3, dtype, state_dtype=state_dtype)
    together = run(nothing_left(optimizer), parameters)
    alone = by_stages(lambda: run(*optimizer_over(layouts, 3, dtype, state_dtype=state_dtype)))
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_weights_of_several_dtypes_with_a_clip_coefficient_give_the_bits_of_the_stages():
    def train():
        model = zoo.net(torch.bfloat16)
        list(model.modules())[-1].float()
        optimizer = AdamMini([*model.named_parameters()], model=model, lr=1e-2, weight_decay=0.1)
        for step in range(3):
            for k, p in enumerate(model.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(31 * step + k)).to(p)
            work = [(group, p, p.grad) for group in optimizer.param_groups for p in group["params"]]
            with torch.no_grad():
                optimizer.update(work, factor=0.3)
        assert {p.dtype for p in model.parameters()} == {torch.float32, torch.bfloat16}
        return {**zoo.snapshot(model), **zoo.state_tensors(optimizer)}

    assert zoo.same(train(), by_stages(train))


def test_16_bit_tensors_are_copied_in_lists_no_larger_than_the_largest_tensor(monkeypatch):
    lists = []
    step = flat_blocks._step
    monkeypatch.setattr(flat_blocks, "_step", lambda o, entries, d: (lists.append(entries), step(o, entries, d)))
    optimizer, parameters = optimizer_over(LARGE, 0, torch.bfloat16)
    run(optimizer, parameters, steps=1)
    held = [sum(p.numel() for _, p, *_ in entries) for entries in lists]
    assert len(lists) > 1 and max(held) == max(p.numel() for p in parameters) == 420_000
    assert sum(held) == sum(p.numel() for p in parameters) - 70_001  # but for the one of many scalars


def test_large_tensors_give_the_bits_of_the_stages_and_many_scalars_stay_with_them():
    optimizer, parameters = optimizer_over(LARGE, 0)
    left = []
    execute = optimizer.execute
    optimizer.execute = lambda updates: left.extend(execute(updates)) or left
    together = run(optimizer, parameters, steps=1)
    assert [update.layout.blocks.name for update in left] == ["bias"]
    alone = by_stages(lambda: run(*optimizer_over(LARGE, 0), steps=1))
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


MODELS = {
    "llama": lambda: llama.build(n_layer=2, n_head=2, n_embd=16, n_hidden=24, vocab_size=32, block_size=8),
    "gpt2": lambda: gpt2.build(n_layer=2, n_head=2, n_embd=16, vocab_size=32, block_size=8),
    "net": zoo.net,
}


@pytest.mark.parametrize("name", MODELS)
def test_groups_with_rates_of_their_own_and_a_changing_set_of_gradients_give_the_bits_of_the_stages(name):
    def train():
        torch.manual_seed(0)
        model = MODELS[name]()
        optimizer = AdamMini(model, lr=1e-2, weight_decay=0.1, no_decay=lambda name, p: p.ndim < 2)
        for step in range(4):
            for k, p in enumerate(model.parameters()):
                noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(31 * step + k))
                p.grad = None if (k + step) % 5 == 0 else noise
            optimizer.step()
        return {**zoo.snapshot(model), **zoo.state_tensors(optimizer)}

    assert zoo.same(train(), by_stages(train))


def test_a_clip_coefficient_inside_backward_gives_the_bits_of_the_stages():
    def train():
        model = zoo.net()
        optimizer = FusedBackward(AdamMini(model, lr=1e-2), max_grad_norm=0.01)
        zoo.train(optimizer, model, 3)
        return {**zoo.snapshot(model), **zoo.state_tensors(optimizer)}

    assert zoo.same(train(), by_stages(train))


@pytest.mark.parametrize("keywords", [dict(reduce="max"), dict(rounding="stochastic"), dict(state_dtype=torch.float64)])
def test_what_is_computed_otherwise_is_left_to_the_stages(keywords):
    dtype = torch.bfloat16 if "rounding" in keywords else torch.float32

    def train():
        model = zoo.net(dtype)
        optimizer = AdamMini(model, lr=1e-2, **keywords)
        zoo.train(optimizer, model, 3)
        return {**zoo.snapshot(model), **zoo.state_tensors(optimizer)}

    assert zoo.same(train(), by_stages(train))
