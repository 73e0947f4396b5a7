"""The quadratic against closed forms, condition numbers of known matrices, and what the two tasks report."""

from pathlib import Path

import numpy as np
import pytest

from lowmem.analysis import quadratics as q
from lowmem.errors import Misuse
from lowmem.tasks import preconditioner, quadratic

SETS = {"block1": {"values": [1, 2, 3]}, "block2": {"values": [99, 100, 101]}}


def small(**changes):
    return {"measure": {"blocks": SETS, "size": 6, "horizons": [5, 20], **changes}}


def closed_form(eigenvalues: np.ndarray, coordinates: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """Loss of gradient descent at one rate after 0 ... steps, from the eigenvalues and w's coordinates in their basis:
    sum of lambda c^2 (1 - rate lambda)^(2 t) / 2."""
    decay = (1 - rate * eigenvalues) ** 2
    t = np.arange(steps + 1)[:, None]
    return 0.5 * (eigenvalues * coordinates**2 * decay**t).sum(axis=1)


def test_gradient_descent_follows_its_closed_form():
    generator = np.random.default_rng(0)
    hessian, w = q.dense(generator, np.geomspace(1, 50, 8)), generator.standard_normal(8)
    values, vectors = np.linalg.eigh(hessian)
    rate = q.best_rate(values[0], values[-1])
    found = q.descend(hessian, w, np.full(8, rate), 40, [8])[:, 0]
    np.testing.assert_allclose(found, closed_form(values, vectors.T @ w, rate, 40), rtol=1e-10)


def test_frozen_adam_is_gradient_descent_in_the_scaled_coordinates():
    generator = np.random.default_rng(1)
    hessian, w = q.dense(generator, np.geomspace(1, 20, 6)), generator.standard_normal(6)
    curves = quadratic.solve([hessian], w, [30], np.array([0.1]))
    root = np.sqrt(q.adam_scale(hessian, w))
    values, vectors = np.linalg.eigh(hessian * root[:, None] * root)
    rate = q.best_rate(values[0], values[-1])
    theirs = closed_form(values, vectors.T @ (w / root), rate, 30)
    np.testing.assert_allclose(curves["adam_frozen"][:, 0], theirs, rtol=1e-8)


def test_accumulated_adam_is_adagrad_written_out():
    hessian, w, rate = np.diag([1.0, 4.0]), np.array([3.0, -2.0]), 0.5
    found = q.accumulate(hessian, w, np.array([rate, 2.0]), 3, [2])[:, 0, 0]
    v, losses = np.zeros(2), [0.5 * w @ hessian @ w]
    for _ in range(3):
        g = hessian @ w
        v = v + g**2
        w = w - rate * g / np.sqrt(v)
        losses.append(0.5 * w @ hessian @ w)
    np.testing.assert_allclose(found, losses, rtol=1e-12)


def test_the_best_rate_is_the_fastest_in_the_worst_case():
    best = q.best_rate(2, 10)
    worst = [max(abs(1 - rate * 2), abs(1 - rate * 10)) for rate in (best * 0.99, best, best * 1.01)]
    assert worst[1] == pytest.approx((10 - 2) / (10 + 2)) and worst[1] < min(worst[0], worst[2])


def test_losses_by_block_add_up_to_the_loss():
    generator = np.random.default_rng(3)
    hessian = q.block_diagonal([q.dense(generator, np.ones(3)), q.dense(generator, np.arange(1.0, 5.0))])
    w = generator.standard_normal(7)
    parts = q.loss_by_block(hessian, w, [3, 4])
    assert parts.sum() == pytest.approx(0.5 * w @ hessian @ w)
    assert parts[0] == pytest.approx(0.5 * w[:3] @ hessian[:3, :3] @ w[:3])


def test_dense_blocks_have_the_eigenvalues_they_were_made_of():
    values = np.array([1.0, 2.0, 3.0, 50.0])
    found = q.dense(np.random.default_rng(4), values)
    np.testing.assert_allclose(np.linalg.eigvalsh(found), values, rtol=1e-12)
    assert (found == found.T).all()


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_rotations_are_orthogonal_and_none_at_strength_zero(strength):
    found = q.rotation(np.random.default_rng(5), 9, strength)
    np.testing.assert_allclose(found @ found.T, np.eye(9), atol=1e-12)
    assert (found == np.eye(9)).all() == (strength == 0)


def test_tau_is_one_for_diagonal_and_a_share_for_full_matrices():
    assert q.tau(np.diag([1.0, 5.0, 9.0])) == 1
    assert q.tau(np.ones((4, 4))) == 0.25
    assert q.tau(np.array([[2.0, -1.0], [-1.0, 2.0]])) == pytest.approx(4 / 6)


def test_condition_numbers_of_known_matrices():
    assert q.kappa(np.diag([2.0, 8.0])) == pytest.approx(4)
    shear = np.array([[1.0, 1.0], [0.0, 1.0]])  # eigenvalues 1 and 1, singular values (3 +- sqrt 5) / 2 squared
    assert q.kappa(shear) == pytest.approx((3 + 5**0.5) / 2)
    assert q.kappa_similar(np.diag([2.0, 8.0]), np.array([4.0, 1.0])) == pytest.approx(1)


def test_eigenvalues_of_dh_are_those_of_the_symmetric_form():
    generator = np.random.default_rng(6)
    hessian, scale = q.dense(generator, np.geomspace(1, 30, 7)), generator.uniform(0.1, 3, 7)
    values = np.sort(np.linalg.eigvals(scale[:, None] * hessian).real)
    assert q.kappa_similar(hessian, scale) == pytest.approx(values[-1] / values[0])
    assert q.kappa_similar(hessian, scale) <= q.kappa(scale[:, None] * hessian) * (1 + 1e-9)


def test_the_scale_of_the_weights_does_not_change_r():
    hessian = q.dense(np.random.default_rng(7), np.geomspace(1, 9, 5))
    w = np.random.default_rng(8).standard_normal(5)
    found = [q.kappa(q.adam_scale(hessian, c * w)[:, None] * hessian) for c in (1, 0.01)]
    assert found[0] == pytest.approx(found[1])


def test_the_quadratic_task_reports_what_its_curves_hold():
    made = quadratic.measure(small(), 0, Path("."))
    final, arrays = made["metrics"]["final"], made["arrays"]
    for problem in ("total", "block1", "block2"):
        for method in ("single", "adam_frozen", "blockwise"):
            for horizon in (5, 20):
                assert final["losses"][problem][str(horizon)][method] == arrays[f"{problem}.{method}"][horizon]
        assert final["losses"][problem]["20"]["adam_accumulated"] == arrays[f"{problem}.adam_accumulated"][20]
    np.testing.assert_allclose(arrays["blocks.single"].sum(axis=1), arrays["total.single"])
    assert final["effective_kappa"]["single"] == pytest.approx(101, rel=0.03)


def test_one_rate_per_block_on_one_block_is_one_rate():
    arrays = quadratic.measure(small(), 1, Path("."))["arrays"]
    np.testing.assert_array_equal(arrays["block1.single"], arrays["block1.blockwise"])


def test_equal_seeds_give_equal_results_and_others_do_not():
    one, again, other = (quadratic.measure(small(), seed, Path("."))["metrics"] for seed in (0, 0, 1))
    assert one == again != other


def test_unknown_keys_of_the_tasks_are_refused():
    with pytest.raises(Misuse, match="unknown key 'horizon'"):
        quadratic.measure(small(horizon=[3]), 0, Path("."))
    with pytest.raises(Misuse, match="one of measure"):
        preconditioner.measure({"measure": {"sets": {}, "sizes": [3]}}, 0, Path("."))


def test_the_preconditioner_task_keeps_quantiles_in_order_and_tau_one_without_rotation():
    table = preconditioner.measure({"measure": {"sets": SETS, "size": 5, "draws": 20}}, 0, Path("."))
    for row in table["metrics"]["final"]["sets"].values():
        assert all(row[key] == sorted(row[key]) for key in ("kappa", "kappa_dh", "kappa_similar", "r", "tau"))
        assert row["r_interval"]["low"] <= row["r_interval"]["value"] == row["r"][2] <= row["r_interval"]["high"]
    config = {"measure": {"sizes": [4, 8], "kappa": 50, "draws": 25, "between": 40, "bins": 4}}
    made = preconditioner.measure(config, 0, Path("."))
    assert made["arrays"]["count"].sum(axis=1).tolist() == [90, 90]
    assert (made["arrays"]["count"][:, -1] >= 25).all()  # the diagonal ones
    assert np.isnan(made["arrays"]["r"][made["arrays"]["count"] < preconditioner.FEWEST]).all()
    assert set(made["metrics"]["final"]["rows"]) == {"4", "8"}


def test_ranks_share_the_mean_of_ties():
    assert preconditioner.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
