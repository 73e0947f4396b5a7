"""Find blocks in a matrix without knowing them, and compare two ways of grouping the same things.

Spectral clustering after Ng, Jordan and Weiss (2001), k-means after Lloyd with seeds after Arthur and Vassilvitskii
(2007), the adjusted Rand index after Hubert and Arabie (1985). NumPy only; every draw is seeded.
"""

import numpy as np


def spectral(similarity: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Group the n rows of a symmetric, non-negative matrix without empty rows into `count` groups: labels (n,)."""
    scale = 1 / np.sqrt(similarity.sum(axis=1))
    normal = similarity * scale[:, None] * scale[None, :]  # eigenvalues in [-1, 1]
    vectors = leading_vectors(normal, count, seed)
    return k_means(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300), count, seed)


def leading_vectors(matrix: np.ndarray, count: int, seed: int, exact_up_to: int = 2000) -> np.ndarray:
    """Eigenvectors of the `count` largest eigenvalues, (n, count); by subspace iteration where n is large."""
    n = len(matrix)
    if n <= exact_up_to:
        return np.linalg.eigh(matrix)[1][:, -count:]
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, count + 8)))[0]
    for _ in range(100):
        basis = np.linalg.qr(matrix @ basis + basis)[0]  # + identity: the largest, not the largest in magnitude
    values, turned = np.linalg.eigh(basis.T @ matrix @ basis)
    return basis @ turned[:, np.argsort(values)[-count:]]


def k_means(points: np.ndarray, count: int, seed: int = 0, restarts: int = 10, rounds: int = 100) -> np.ndarray:
    """Labels (n,) of the best of several k-means runs on points (n, d)."""
    generator = np.random.default_rng(seed)
    best, found = np.inf, np.zeros(len(points), dtype=np.int64)
    for _ in range(restarts):
        centres = spread_seeds(points, count, generator)
        groups = np.full(len(points), -1)
        for _ in range(rounds):
            distances = squared_distances(points, centres)
            new = distances.argmin(axis=1)
            if (new == groups).all():
                break
            groups = new
            sums = np.zeros_like(centres)
            np.add.at(sums, groups, points)
            sizes = np.bincount(groups, minlength=count)
            centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
        spread = distances.min(axis=1).sum()
        if spread < best:
            best, found = spread, groups
    return found


def spread_seeds(points: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """First centres: each next one is drawn with a chance proportional to its squared distance from the others."""
    chosen = [points[generator.integers(len(points))]]
    for _ in range(count - 1):
        distances = squared_distances(points, np.array(chosen)).min(axis=1)
        total = distances.sum()
        chosen.append(points[generator.choice(len(points), p=distances / total if total > 0 else None)])
    return np.array(chosen)


def squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n, d), (k, d) -> (n, k); never negative."""
    cross = points @ centres.T
    return np.maximum((points**2).sum(axis=1)[:, None] - 2 * cross + (centres**2).sum(axis=1)[None, :], 0)


def adjusted_rand(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two groupings: 1 when they are the same up to names, 0 on average for random ones."""
    a, b = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, of_a, of_b = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected = of_a * of_b / (len(a) * (len(a) - 1) / 2)
    most = (of_a + of_b) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)
