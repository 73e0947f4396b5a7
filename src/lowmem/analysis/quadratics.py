"""Random quadratics with dense blocks, and what Adam's diagonal preconditioner does to them. NumPy, float64.

Adam-mini, Section 2 (arXiv 2406.16793): minimise w'Hw / 2 with H positive definite and block-diagonal. With beta1 = 0
and v frozen at the first squared gradient, Adam is gradient descent preconditioned by D = diag(1 / |g|).
"""

from collections.abc import Sequence

import numpy as np


def rotation(generator: np.random.Generator, size: int, strength: float = 1.0) -> np.ndarray:
    """An orthogonal matrix: the identity for strength 0, uniform (Haar) for 1, in between for others."""
    mixed = (1 - strength) * np.eye(size) + strength * generator.standard_normal((size, size))
    q, r = np.linalg.qr(mixed)
    return q * np.sign(np.diag(r))  # makes the draw uniform (Mezzadri 2007)


def dense(generator: np.random.Generator, eigenvalues: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Q diag(eigenvalues) Q' for a random rotation Q; exactly symmetric."""
    q = rotation(generator, len(eigenvalues), strength)
    block = (q * eigenvalues) @ q.T
    return (block + block.T) / 2


def spectrum(generator: np.random.Generator, how: dict, size: int) -> np.ndarray:
    """Eigenvalues of a block: {values: [...]} draws from a set, {log: [low, high]} spaces them by equal ratios, low first."""
    if "values" in how:
        return generator.choice(np.array(how["values"], dtype=np.float64), size)
    return np.geomspace(*how["log"], size)


def block_diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """The blocks, (n_i, n_i) each, along the diagonal of one matrix (n, n) that is 0 elsewhere."""
    whole, at = np.zeros([sum(len(b) for b in blocks)] * 2), 0
    for block in blocks:
        whole[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return whole


def best_rate(smallest: float, largest: float) -> float:
    """The rate with the fastest worst-case decay of gradient descent on a quadratic."""
    return 2 / (smallest + largest)


def kappa(matrix: np.ndarray) -> float:
    """Condition number by singular values, which is the usual one also for matrices that are not symmetric."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(values[0] / values[-1])


def kappa_similar(hessian: np.ndarray, scale: np.ndarray) -> float:
    """Largest over smallest eigenvalue of D H with D = diag(scale) > 0: that of the symmetric sqrt(D) H sqrt(D).

    It decides how fast preconditioned gradient descent converges; kappa(D H) by singular values is never smaller.
    """
    root = np.sqrt(scale)
    values = np.linalg.eigvalsh(hessian * root[:, None] * root[None, :])
    return float(values[-1] / values[0])


def tau(hessian: np.ndarray) -> float:
    """Share of the diagonal in the mass of |H|: 1 for a diagonal matrix, near 1 / n for a full one."""
    return float(np.abs(np.diag(hessian)).sum() / np.abs(hessian).sum())


def adam_scale(hessian: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Diagonal of D = 1 / sqrt(v) with v = g * g and g = H w."""
    return 1 / np.abs(hessian @ weights)


def loss_by_block(hessian: np.ndarray, w: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """w'Hw / 2 split by block; w (..., n) -> (..., blocks)."""
    parts = 0.5 * w * (w @ hessian)
    return np.add.reduceat(parts, np.cumsum([0, *sizes[:-1]]), axis=-1)


def descend(hessian: np.ndarray, w: np.ndarray, rates: np.ndarray, steps: int, sizes: Sequence[int]) -> np.ndarray:
    """Gradient descent with a rate for each coordinate, (n,): losses by block before each step, (steps + 1, blocks)."""
    losses = [loss_by_block(hessian, w, sizes)]
    for _ in range(steps):
        w = w - rates * (hessian @ w)
        losses.append(loss_by_block(hessian, w, sizes))
    return np.array(losses)


def accumulate(hessian: np.ndarray, w: np.ndarray, rates: np.ndarray, steps: int, sizes: Sequence[int]) -> np.ndarray:
    """Adam with v the sum of all squared gradients (AdaGrad), for several rates at once: (steps + 1, rates, blocks)."""
    w = np.tile(w, (len(rates), 1))
    v, losses = np.zeros_like(w), [loss_by_block(hessian, w, sizes)]
    with np.errstate(invalid="ignore", over="ignore"):
        for _ in range(steps):
            gradient = w @ hessian
            v += gradient**2
            w = w - rates[:, None] * gradient / np.sqrt(np.maximum(v, 1e-300))
            losses.append(loss_by_block(hessian, w, sizes))
    return np.array(losses)
