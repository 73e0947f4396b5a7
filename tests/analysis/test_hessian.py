"""Hessians against finite differences and torch, masses against their definition, and refusal of what does not fit."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lowmem import partition
from lowmem.analysis import hessian
from lowmem.blocks import along, coordinates, one_block
from lowmem.errors import Misuse
from lowmem.models import gpt2, mlp
from lowmem.tasks.hessian import find_modules, mean_loss


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = mlp.build(n_input=5, n_hidden=3, n_output=4, activation="tanh").double()
    batch = torch.randn(7, 5, dtype=torch.float64), torch.randint(0, 4, (7,))
    return model, batch


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    model = gpt2.build(n_layer=2, n_head=2, n_embd=8, n_hidden=8, vocab_size=8, block_size=6, tied=False).double()
    tokens = torch.randint(0, 8, (3, 7))
    return model, (tokens[:, :-1], tokens[:, 1:])


def gradient(model, batch, parameter):
    return torch.autograd.grad(mean_loss(model, batch), parameter)[0].flatten()


@pytest.mark.parametrize("name", ["blocks.0.attention.wq.weight", "tokens.weight", "head.weight"])
def test_exact_hessian_of_a_transformer_is_the_finite_difference_of_its_gradient(transformer, name):
    model, batch = transformer
    parameter = model.get_parameter(name)
    found = hessian.exact(lambda: mean_loss(model, batch), parameter, rows=7)  # 7 does not divide 64
    step, flat = 1e-5, parameter.data.view(-1)
    for k in (0, 9, len(flat) - 1):
        before = flat[k].item()
        flat[k] = before + step
        above = gradient(model, batch, parameter)
        flat[k] = before - step
        below = gradient(model, batch, parameter)
        flat[k] = before
        np.testing.assert_allclose(found[k], (above - below) / (2 * step), atol=1e-8)
    assert np.abs(found).max() > 1e-7


def test_exact_hessian_equals_torchs(network):
    model, (inputs, targets) = network

    def loss(weight):
        replaced = {"hidden.weight": weight}
        return F.cross_entropy(torch.func.functional_call(model, replaced, inputs), targets)

    theirs = torch.autograd.functional.hessian(loss, model.hidden.weight).reshape(15, 15)
    found = hessian.exact(lambda: mean_loss(model, (inputs, targets)), model.hidden.weight, rows=4)
    np.testing.assert_allclose(found, theirs, atol=1e-14)


def test_products_are_the_matrix_times_the_vectors(network):
    model, batch = network
    weight = model.hidden.weight
    matrix = hessian.exact(lambda: mean_loss(model, batch), weight)
    vectors = torch.randn(3, 3, 5, dtype=torch.float64)
    (g,) = torch.autograd.grad(mean_loss(model, batch), weight, create_graph=True)
    (found,) = hessian.products([g], [weight], [vectors])
    np.testing.assert_allclose(found.reshape(3, 15), vectors.reshape(3, 15).numpy() @ matrix, atol=1e-14)


def test_columns_are_those_of_the_exact_hessian_and_their_mass_covers_all_parameters(transformer):
    model, batch = transformer
    everything = list(model.parameters())
    parameter = model.get_parameter("blocks.1.mlp.up.weight")
    exact = hessian.exact(lambda: mean_loss(model, batch), parameter)
    chosen = np.array([0, 5, 63])
    found, mass = hessian.columns(lambda: mean_loss(model, batch), parameter, everything, chosen, rows=2)
    np.testing.assert_allclose(found, exact[chosen], atol=1e-14)
    assert (mass > np.abs(found).sum(axis=1)).all()


def test_a_hessian_that_does_not_fit_is_refused_with_its_size_before_any_work():
    weight = torch.nn.Parameter(torch.zeros(30_000, device="meta"))

    def never():
        raise AssertionError("the loss was computed")

    with pytest.raises(Misuse, match=r"30,000 parameters needs 3\.60 GB and 1\.00 GB are allowed"):
        hessian.exact(never, weight, limit=10**9)
    huge = torch.nn.Parameter(torch.zeros(10**9, dtype=torch.float64, device="meta"))
    with pytest.raises(Misuse, match=r"8,000,000,000\.00 GB"):
        hessian.exact(never, huge)  # no limit: the machine's memory


def test_labels_follow_the_partition():
    assert hessian.labels(along("w", (4, 3), "head", ((0, 4, 2),))).tolist() == [0] * 6 + [1] * 6
    assert hessian.labels(along("w", (2, 4), "neuron", ((0, 4, 1),), axis=1)).tolist() == [0, 1, 2, 3] * 2
    fused = along("w", (6, 1), "mixed", ((0, 2, 2), (2, 6, 1)))
    assert hessian.labels(fused).tolist() == [0, 0, 1, 2, 3, 4]
    assert hessian.labels(one_block("w", (2, 2))).tolist() == [0] * 4
    assert hessian.labels(coordinates("w", (3,))).tolist() == [0, 1, 2]


def test_labels_have_as_many_blocks_as_the_partition_says(transformer):
    for blocks in partition(transformer[0]):
        assert hessian.labels(blocks).max() + 1 == blocks.count


@pytest.mark.parametrize("count", [2, 30])  # few large blocks, many small ones: two ways to sum
def test_mass_inside_is_the_sum_over_pairs_of_one_block(count):
    generator = np.random.default_rng(0)
    magnitude, groups = generator.random((60, 60)), np.arange(60) % count
    same = groups[:, None] == groups[None, :]
    assert hessian.mass_inside(magnitude, groups)[0] == pytest.approx(magnitude[same].sum() / magnitude.sum())
    rows = np.array([3, 17, 40])
    part = hessian.mass_inside(magnitude[rows], groups, rows)[0]
    assert part == pytest.approx((magnitude[rows] * same[rows]).sum() / magnitude[rows].sum())
    together = hessian.mass_inside(magnitude, np.stack([groups, groups[::-1]]))
    assert together[1] == pytest.approx(hessian.mass_inside(magnitude, groups[::-1])[0])


def test_a_block_diagonal_matrix_lies_wholly_inside_and_far_above_its_null():
    magnitude = np.kron(np.eye(4), np.ones((8, 8)))
    found = hessian.block_share(magnitude, np.repeat(np.arange(4), 8), seed=0)
    assert found["share"] == 1 and found["null_high"] < 0.5 and found["contrast"] == np.inf


def test_a_matrix_without_blocks_lies_within_its_null():
    inside = 0
    for seed in range(40):
        values = np.random.default_rng(seed).random((32, 32))
        found = hessian.block_share(values + values.T, np.repeat(np.arange(4), 8), seed)
        inside += found["null_low"] <= found["share"] <= found["null_high"]
    assert inside >= 33  # 95 % of 40 are 38; fewer than 33 has a chance of 0.3 %


def test_the_null_is_a_function_of_the_seed():
    values = np.random.default_rng(1).random((20, 20))
    found = [hessian.block_share(values, np.arange(20) // 5, seed) for seed in (3, 3, 4)]
    assert found[0] == found[1] and found[0]["null_high"] != found[2]["null_high"]


@given(st.lists(st.integers(0, 4), min_size=5, max_size=40), st.integers(0, 100))
def test_random_partitions_keep_the_block_sizes(groups, seed):
    groups = np.array(groups)
    for drawn in hessian.random_partitions(groups, 3, seed):
        assert (np.bincount(drawn, minlength=5) == np.bincount(groups, minlength=5)).all()


def test_pictures_keep_block_edges_and_the_total():
    groups = np.array([0, 1] * 50)
    magnitude = (groups[:, None] == groups).astype(float)
    small = hessian.picture(magnitude, groups, 11)  # ten tiles, five for each block
    assert small.shape == (10, 10) and small.dtype == np.float32
    np.testing.assert_array_equal(small, np.kron(np.eye(2), np.ones((5, 5))))


def test_a_picture_takes_little_memory_beside_its_matrix():
    groups = np.random.default_rng(0).integers(0, 5, 1500)
    magnitude = np.random.default_rng(1).random((1500, 1500))
    tracemalloc.start()
    hessian.picture(magnitude, groups)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.3 * magnitude.nbytes


def test_modules_that_do_not_exist_are_refused_with_a_near_name(network):
    with pytest.raises(Misuse, match=r"did you mean 'hidden\.weight'"):
        find_modules(network[0], {"hidden": "hiden.weight"})
