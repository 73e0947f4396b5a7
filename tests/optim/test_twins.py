"""Every optimizer agrees with its literal reference (tests/support/twins.py), step by step, over random shapes and settings."""

import importlib
import inspect
import math

import numpy as np
import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowmem import optim, partition
from lowmem.optim import CAME, SGD, SM3, Adafactor, AdaLomo, AdamMini, AdamW, Lamb, Lion, Lomo

few = settings(max_examples=12, deadline=None, derandomize=True, database=None)
shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 7)),
    st.tuples(st.integers(1, 6), st.integers(1, 7)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 3)),
    st.just((2, 3, 2, 2)),
)
dtypes = st.sampled_from([torch.float32, torch.float64])
rates = st.sampled_from([1e-4, 1e-2, 0.3])
decays = st.sampled_from([0.0, 0.1])
betas = st.sampled_from([(0.9, 0.999), (0.0, 0.5), (0.9, 0.95)])
epsilons = st.sampled_from([1e-8, 1e-3])
seeds = st.integers(0, 10_000)
STEPS = 6


def agrees(optimizer, parameters, twin_of, seed, clip=None, tolerance=1.0):
    """Feed the same random gradients to the optimizer and to one twin per parameter; compare after every step."""
    rng = np.random.default_rng(seed)
    copies = [p.detach().double().numpy().copy() for p in parameters]
    references = [twin_of(k) for k in range(len(parameters))]
    dtype = parameters[0].dtype
    close = tolerance * (2e-6 if dtype == torch.float32 else 1e-11)
    for step in range(STEPS):
        gradients = [torch.tensor(rng.normal(size=c.shape) * 10.0 ** rng.integers(-3, 2), dtype=dtype) for c in copies]
        before = [c.copy() for c in copies]
        if hasattr(optimizer, "backward"):
            optimizer.backward(sum((p * g).sum() for p, g in zip(parameters, gradients)))
        else:
            for p, g in zip(parameters, gradients):
                p.grad = g.clone()
        optimizer.step()
        exact = [g.double().numpy() for g in gradients]
        exact = clip(exact) if clip else exact
        copies = [twin.step(c, g) for twin, c, g in zip(references, copies, exact)]
        for p, c, old in zip(parameters, copies, before):
            size = np.abs(old).max(initial=0) + np.abs(c - old).max(initial=0)  # rounding grows with weight and update
            np.testing.assert_allclose(
                p.detach().double().numpy(), c, rtol=0, atol=(step + 1) * close * max(size, 1e-3)
            )


def tensors(shape_list, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shape_list
    ]


several = st.lists(shapes, min_size=1, max_size=3)


OTHERWISE = {
    "lomo",
    "adalomo",
    "adam_mini",
    "adafactor",
    "came",
}  # their twins need more than their settings; see below


def twin_of(name: str) -> type:
    """The twin of an optimizer's file: the class of the same name in twins.py, else in twin_<name>.py beside it."""
    kind = optim.find(name).__name__
    return getattr(twins, kind, None) or getattr(importlib.import_module(f"twin_{name}"), kind)


@pytest.mark.parametrize("name", sorted({*optim.names()} - OTHERWISE))
@few
@given(shape_list=several, dtype=dtypes, seed=seeds)
def test_any_optimizer_equals_the_twin_of_its_name_by_its_default_settings(name, shape_list, dtype, seed):
    p, twin = tensors(shape_list, dtype, seed), twin_of(name)
    optimizer = optim.find(name)(p)
    settings = {key: optimizer.defaults[key] for key in inspect.signature(twin).parameters if key in optimizer.defaults}
    agrees(optimizer, p, lambda k: twin(**settings), seed, tolerance=4)


@few
@given(several, dtypes, rates, betas, epsilons, decays, seeds)
def test_adamw_equals_its_twin(shape_list, dtype, lr, beta, eps, decay, seed):
    p = tensors(shape_list, dtype, seed)
    settings = dict(lr=lr, betas=beta, eps=eps, weight_decay=decay)
    agrees(AdamW(p, **settings), p, lambda k: twins.AdamW(**settings), seed)


@few
@given(
    several,
    dtypes,
    rates,
    st.sampled_from([(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.3, False), (0.5, 0.0, True)]),
    decays,
    st.booleans(),
    seeds,
)
def test_sgd_equals_its_twin(shape_list, dtype, lr, moment, decay, decoupled, seed):
    p = tensors(shape_list, dtype, seed)
    momentum, dampening, nesterov = moment
    settings = dict(
        lr=lr, momentum=momentum, dampening=dampening, nesterov=nesterov, weight_decay=decay, decoupled=decoupled
    )
    agrees(SGD(p, **settings), p, lambda k: twins.SGD(**settings), seed)


@few
@given(several, dtypes, rates, st.sampled_from([None, 0.01, 5.0]), st.sampled_from([None, 0.02]), decays, seeds)
def test_lomo_equals_its_twin(shape_list, dtype, lr, norm, value, decay, seed):
    p = tensors(shape_list, dtype, seed)

    def clip(gradients):  # the norm is taken before the clamp, the factor applied after it: the official order
        factor = twins.clip_coefficient(gradients, norm) if norm else 1.0
        clamped = [np.clip(g, -value, value) if value else g for g in gradients]
        return [g * factor for g in clamped]

    optimizer = Lomo(p, lr=lr, max_grad_norm=norm, clip_value=value, weight_decay=decay)
    agrees(optimizer, p, lambda k: twins.SGD(lr, weight_decay=decay, decoupled=True), seed, clip)


ADAFACTORS = {
    "original": ({}, {}),
    "zhai": (dict(variant="zhai"), dict(beta1=0.9, beta2_cap=0.999, scale=False)),
    "momentum": (dict(beta1=0.5), dict(beta1=0.5)),
    "unscaled": (dict(scale_parameter=False), dict(scale=False)),
    "relative": (dict(relative_step=True), dict(relative="original")),
    "warmup": (dict(relative_step=True, warmup_init=True), dict(relative="warmup")),
    "capped": (dict(relative_step="capped", decay_by_lr=True), dict(relative="capped", decay_by_lr=True)),
    "flat decay": (dict(decay_rate=-0.5, beta2_cap=0.6), dict(decay_rate=-0.5, beta2_cap=0.6)),
    "tight clip": (dict(clip_threshold=0.3, eps=(1e-6, 0.1)), dict(clip=0.3, eps=(1e-6, 0.1))),
}


@pytest.mark.parametrize("flavour", ADAFACTORS)
@settings(few, max_examples=5)
@given(several, dtypes, rates, decays, seeds)
def test_adafactor_equals_its_twin(flavour, shape_list, dtype, lr, decay, seed):
    p = tensors(shape_list, dtype, seed)
    ours, theirs = ADAFACTORS[flavour]
    agrees(
        Adafactor(p, lr=lr, weight_decay=decay, **ours),
        p,
        lambda k: twins.Adafactor(lr=lr, weight_decay=decay, **theirs),
        seed,
        tolerance=2,
    )


@few
@given(several, dtypes, rates, decays, seeds)
def test_adalomo_equals_its_twin(shape_list, dtype, lr, decay, seed):
    p = tensors(shape_list, dtype, seed)
    optimizer = AdaLomo(p, lr=lr, weight_decay=decay)
    agrees(optimizer, p, lambda k: twins.Adafactor(lr=lr, weight_decay=decay), seed, tolerance=2)


@few
@given(several, dtypes, rates, decays, st.sampled_from([0.4, 1.0]), seeds)
def test_came_equals_its_twin(shape_list, dtype, lr, decay, clip, seed):
    p = tensors(shape_list, dtype, seed)
    common = dict(lr=lr, betas=(0.9, 0.99, 0.999), eps=(1e-30, 1e-8), weight_decay=decay)
    agrees(CAME(p, clip_threshold=clip, **common), p, lambda k: twins.CAME(clip=clip, **common), seed, tolerance=4)


@few
@given(several, dtypes, rates, st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.95]), decays, seeds)
def test_sm3_equals_its_twin(shape_list, dtype, lr, momentum, beta, decay, seed):
    p = tensors(shape_list, dtype, seed)
    settings = dict(lr=lr, momentum=momentum, beta=beta, eps=1e-30, weight_decay=decay)
    agrees(SM3(p, **settings), p, lambda k: twins.SM3(**settings), seed)


@few
@given(several, dtypes, rates, betas, decays, seeds)
def test_lion_equals_its_twin(shape_list, dtype, lr, beta, decay, seed):
    p = tensors(shape_list, dtype, seed)
    settings = dict(lr=lr, betas=beta, weight_decay=decay)
    agrees(Lion(p, **settings), p, lambda k: twins.Lion(**settings), seed)


@few
@given(several, dtypes, rates, betas, epsilons, decays, seeds)
def test_lamb_equals_its_twin(shape_list, dtype, lr, beta, eps, decay, seed):
    p = tensors(shape_list, dtype, seed)
    settings = dict(lr=lr, betas=beta, eps=eps, weight_decay=decay)
    agrees(Lamb(p, **settings), p, lambda k: twins.Lamb(**settings), seed, tolerance=2)


def test_lamb_keeps_a_ratio_of_one_where_weights_are_zero():
    p = [nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    settings = dict(lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    agrees(Lamb(p, **settings), p, lambda k: twins.Lamb(**settings), 3)


# -- Adam-mini: block index sets spelled out by hand ---------------------------------------------------------------------


class Conv1D(nn.Module):
    """The Hugging Face layer that stores (in, out): output neurons are columns."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.weight, self.bias = nf, nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))


class Attention(nn.Module):
    """One attention layer of a chosen make; only its parameters matter here."""

    def __init__(self, heads, kv_heads, head_dim, dim, fused=None):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = heads, kv_heads, head_dim
        rows = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
        if fused is None:
            self.wq, self.wk, self.wv = (nn.Linear(dim, r, bias=False) for r in rows)
        elif fused == "conv1d":
            self.c_attn = Conv1D(sum(rows), dim)
        else:
            self.qkv = nn.Linear(dim, sum(rows), bias=False)
        self.wo = nn.Linear(heads * head_dim, dim)


class Decoder(nn.Module):
    """Embedding, attention, norm and output layer, as much Transformer as a partition can see."""

    def __init__(self, *shape, fused=None):
        super().__init__()
        self.tokens = nn.Embedding(5, shape[3])
        self.attention = Attention(*shape, fused=fused)
        self.norm = nn.LayerNorm(shape[3])
        self.head = nn.Linear(shape[3], 5, bias=False)


def rows(shape, size=1, start=0, stop=None):
    """Blocks of `size` consecutive rows of a matrix."""
    stop = shape[0] if stop is None else stop
    return [[(r, c) for r in range(first, first + size) for c in range(shape[1])] for first in range(start, stop, size)]


def turned(blocks):
    """The same blocks of the transposed matrix."""
    return [[(c, r) for r, c in block] for block in blocks]


def whole(shape):
    return [twins.every(shape)]


def each(shape):
    return [[i] for i in twins.every(shape)]


def expected_blocks(name, shape, heads, kv_heads, size, value, embedding, output, biases):
    """The paper's rule for one parameter of Decoder, as index sets."""
    by = {"row": rows, "tensor": whole, "coordinate": each}
    if name.endswith("bias"):
        return each(shape) if biases == "coordinate" else whole(shape)
    if "wq" in name or "wk" in name:
        return rows(shape, size)
    if "wv" in name:
        return by[value](shape)
    if "qkv" in name or "c_attn" in name:
        logical = shape[::-1] if "c_attn" in name else shape
        cut = (heads + kv_heads) * size
        found = rows(logical, size, 0, cut)
        v_rows = rows(logical, 1, cut)
        found += v_rows if value == "row" else [[i for block in v_rows for i in block]]
        return turned(found) if "c_attn" in name else found
    if "tokens" in name:
        return by[embedding](shape)
    if "head" in name:
        return by[output](shape)
    return rows(shape) if "wo" in name else whole(shape)


@settings(few, max_examples=100)
@given(
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    size=st.sampled_from([2, 3]),
    dim=st.sampled_from([4, 5]),
    fused=st.sampled_from([None, "linear", "conv1d"]),
    reduce=st.sampled_from(["mean", "mean", "mean", "mean", "max", "min", "l1", "l2"]),  # the C kernel does the mean
    value=st.sampled_from(["row", "tensor"]),
    embedding=st.sampled_from(["row", "tensor", "coordinate"]),
    output=st.sampled_from(["row", "tensor", "coordinate"]),
    biases=st.sampled_from(["coordinate", "tensor"]),
    dtype=dtypes,
    beta=betas,
    decay=decays,
    seed=seeds,
)
def test_adam_mini_equals_its_twin(
    heads, size, dim, fused, reduce, value, embedding, output, biases, dtype, beta, decay, seed
):
    torch.manual_seed(seed)
    model = Decoder(*heads, size, dim, fused=fused).to(dtype)
    switches = dict(value=value, embedding=embedding, output=output, biases=biases)
    settings = dict(lr=1e-2, betas=beta, eps=1e-8, weight_decay=decay, reduce=reduce)
    named = list(model.named_parameters())
    blocks = [expected_blocks(name, tuple(p.shape), *heads, size, **switches) for name, p in named]
    assert [b.count for b in partition(model, **switches)] == [len(b) for b in blocks]
    agrees(
        AdamMini(model, **settings, **switches),
        [p for _, p in named],
        lambda k: twins.AdamMini(blocks[k], **settings),
        seed,
        tolerance=2,
    )


@few
@given(several, dtypes, st.sampled_from(["mean", "max", "min", "l1", "l2"]), seeds)
def test_adam_mini_with_one_block_per_tensor_equals_its_twin(shape_list, dtype, reduce, seed):
    p = tensors(shape_list, dtype, seed)
    settings = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, reduce=reduce)
    with pytest.warns(UserWarning, match="every tensor is one block"):
        optimizer = AdamMini(p, **settings)
    agrees(optimizer, p, lambda k: twins.AdamMini(whole(p[k].shape), **settings), seed)


def test_adam_mini_blocks_of_a_position_table_and_of_equal_pieces_equal_their_twin():
    """A (1, 4, 3) table is cut by position; an override by number cuts consecutive elements."""
    model = nn.Module()
    model.attention = Attention(1, 1, 2, 3)
    model.pos_embed = nn.Parameter(torch.randn(1, 4, 3))
    model.gates = nn.Parameter(torch.randn(2, 3, 2))
    optimizer = AdamMini(model, lr=1e-2, overrides={"gates": 3, "attention.wo.weight": "column"})
    flat = twins.every((2, 3, 2))
    expected = {
        "pos_embed": [[(0, r, c) for c in range(3)] for r in range(4)],
        "gates": [flat[k : k + 4] for k in range(0, 12, 4)],
        "attention.wo.weight": turned(rows((2, 3))),
        "attention.wo.bias": each((3,)),
        "attention.wv.weight": rows((2, 3)),
        "attention.wq.weight": whole((2, 3)),
        "attention.wk.weight": whole((2, 3)),
    }
    named = list(model.named_parameters())
    settings = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    agrees(
        optimizer, [p for _, p in named], lambda k: twins.AdamMini(expected[named[k][0]], **settings), 11, tolerance=2
    )


def test_the_twins_reproduce_hand_computed_first_steps():
    """Guards the references themselves: one element, one step, worked out by hand."""
    w, g = np.array([2.0]), np.array([0.5])
    root = math.sqrt
    assert twins.AdamW(0.1, (0.9, 0.99), 0.0, 0.5).step(w, g) == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1)
    assert twins.SGD(0.1, weight_decay=0.5).step(w, g) == pytest.approx(2 - 0.1 * (0.5 + 1.0))
    assert twins.Adafactor(0.1).step(w, g) == pytest.approx(2 - 0.1 * 2)  # RMS(w) = 2, u = 1
    assert twins.SM3(0.1, 0.0, 0.0, 0.0, 0.0).step(w, g) == pytest.approx(2 - 0.1)
    assert twins.Lion(0.1, (0.9, 0.99), 0.0).step(w, -g) == pytest.approx(2.1)
    assert twins.Lamb(0.1, (0.9, 0.99), 0.0, 0.0).step(w, g) == pytest.approx(2 - 0.1 * 2)
    pair = np.array([[3.0, 4.0]])
    mini = twins.AdamMini([[(0, 0), (0, 1)]], 0.1, (0.0, 0.0), 0.0, 0.0).step(np.zeros((1, 2)), pair)
    assert mini == pytest.approx(-0.1 * pair / root(12.5))
