"""Spectral clustering finds planted blocks; the adjusted Rand index has its known values."""

import numpy as np
import pytest

from lowmem.analysis import clustering


@pytest.mark.parametrize("limit", [2000, 0])  # by eigh, by subspace iteration
def test_planted_blocks_are_found_in_any_order(monkeypatch, limit):
    generator = np.random.default_rng(0)
    groups = generator.permutation(np.repeat(np.arange(4), 15))
    noise = generator.random((60, 60))
    matrix = (groups[:, None] == groups) + 0.1 * (noise + noise.T)
    vectors = clustering.leading_vectors(matrix, 4, 0, exact_up_to=limit)
    monkeypatch.setattr(clustering, "leading_vectors", lambda *_: vectors)
    assert clustering.adjusted_rand(clustering.spectral(matrix, 4, seed=1), groups) == 1


def test_subspace_iteration_finds_the_leading_eigenvectors():
    values = np.random.default_rng(2).random((50, 50))
    matrix = (values + values.T) / 50
    exact, found = (clustering.leading_vectors(matrix, 1, 0, limit) for limit in (100, 0))
    assert abs(float(exact[:, 0] @ found[:, 0])) == pytest.approx(1, abs=1e-8)


def test_adjusted_rand_of_known_tables():
    a = np.array([0, 0, 1, 1])
    assert clustering.adjusted_rand(a, np.array([5, 5, 2, 2])) == 1  # names do not matter
    assert clustering.adjusted_rand(a, np.array([0, 1, 0, 1])) == pytest.approx(-0.5)
    assert clustering.adjusted_rand(a, np.array([0, 0, 0, 1])) == pytest.approx(0)
    a, b = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 3, 3])
    assert clustering.adjusted_rand(a, b) == pytest.approx(16 / 21)  # 2 pairs in both, 3 and 2 in each, of 15


def test_adjusted_rand_of_random_groupings_is_zero_on_average():
    generator = np.random.default_rng(0)
    values = [clustering.adjusted_rand(generator.integers(0, 5, 60), generator.integers(0, 5, 60)) for _ in range(300)]
    assert abs(np.mean(values)) < 0.005
