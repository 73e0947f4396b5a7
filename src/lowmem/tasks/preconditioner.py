"""How well Adam's diagonal preconditioner does on a dense block (Adam-mini: condition numbers, tau-r maps).

For H = Q diag(eigenvalues) Q' and D = diag(1 / |Hx|) with Gaussian x: kappa(H), kappa(D H) by singular values, the same
by eigenvalues of sqrt(D) H sqrt(D), tau and r = kappa(D H) / kappa(H). kappa(D H) has no finite mean, since a gradient
coordinate may be as near to zero as it likes: only medians and quantiles are kept.
"""

from pathlib import Path

import numpy as np

from lowmem import quadratics as q
from lowmem.errors import Misuse
from lowmem.stats import bootstrap

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FEWEST = 20  # draws in a cell of a map; with fewer it stays empty
KEYS = {"sets", "size", "kappa", "sizes", "kappas", "strengths", "draws", "bins"}


def measure(config: dict, seed: int, root: Path) -> dict:
    """measure.sets {name: {values} | {log}} with size: quantiles by set. Or a map of r over tau and measure.sizes (at
    one kappa) or measure.kappas (at one size), eigenvalues spaced by equal ratios from 1 to kappa, rotated with each
    of measure.strengths. draws: of Q and x, for each set or each strength.

    metrics.final: sets {name: {kappa, kappa_dh, kappa_similar, r, r_similar, tau: quantiles, and r_interval of the
    median}}; or rows {size or kappa: {trend: Spearman correlation of tau and r, full: median r at full rotation,
    diagonal: median r without rotation, each {value, low, high, n}}}. Arrays of a map: median_r, median_r_similar,
    count (rows, bins), edges (bins + 1,).
    """
    settings = {"size": 30, "kappa": 1000, "draws": 200, "bins": 10, **config["measure"]}
    unknown = settings.keys() - KEYS
    if unknown or sum(key in settings for key in ("sets", "sizes", "kappas")) != 1:
        raise Misuse(f"task preconditioner needs one of measure.sets, sizes, kappas; unknown: {sorted(unknown)}")
    generator = np.random.default_rng(seed)
    if "sets" in settings:
        found = {name: table_row(generator, how, settings, seed) for name, how in settings["sets"].items()}
        return {"metrics": {"final": {"sets": found}}}
    over = "sizes" if "sizes" in settings else "kappas"
    rows, cells = {}, []
    for value in settings[over]:
        size, kappa = (value, settings["kappa"]) if over == "sizes" else (settings["size"], value)
        drawn = [draws(generator, np.geomspace(1, kappa, size), s, settings["draws"]) for s in settings["strengths"]]
        rows[str(value)] = map_row(drawn, settings["strengths"], seed)
        cells.append(by_tau({key: np.concatenate([d[key] for d in drawn]) for key in drawn[0]}, settings["bins"]))
    arrays = {key: np.array([cell[key] for cell in cells]) for key in cells[0]}
    arrays["edges"] = np.linspace(0, 1, settings["bins"] + 1)
    return {"metrics": {"final": {"over": over, "rows": rows}}, "arrays": arrays}


def draws(generator: np.random.Generator, eigenvalues, strength: float, count: int) -> dict[str, np.ndarray]:
    """{kappa, kappa_dh, kappa_similar, r, r_similar, tau: (count,)}; eigenvalues: an array, or a function that draws."""
    found = {key: np.empty(count) for key in ("kappa", "kappa_dh", "kappa_similar", "tau")}
    for k in range(count):
        hessian = q.dense(generator, eigenvalues() if callable(eigenvalues) else eigenvalues, strength)
        scale = q.adam_scale(hessian, generator.standard_normal(len(hessian)))  # r does not depend on the size of x
        found["kappa"][k], found["tau"][k] = q.kappa(hessian), q.tau(hessian)
        found["kappa_dh"][k] = q.kappa(scale[:, None] * hessian)
        found["kappa_similar"][k] = q.kappa_similar(hessian, scale)
    return {
        **found,
        "r": found["kappa_dh"] / found["kappa"],
        "r_similar": found["kappa_similar"] / found["kappa"],
    }


def table_row(generator: np.random.Generator, how: dict, settings: dict, seed: int) -> dict:
    """Quantiles of one set of eigenvalues under full rotation."""
    found = draws(generator, lambda: q.spectrum(generator, how, settings["size"]), 1.0, settings["draws"])
    quantiles = {key: [float(v) for v in np.quantile(values, QUANTILES)] for key, values in found.items()}
    intervals = {f"{key}_interval": median(found[key], seed) for key in ("r", "r_similar")}
    return {**quantiles, **intervals, "draws": settings["draws"]}


def median(values: np.ndarray, seed: int) -> dict:
    """Median with its bootstrap interval."""
    low, high = bootstrap(values, np.median, draws=2000, seed=seed)
    return {"value": float(np.median(values)), "low": low, "high": high, "n": len(values)}


def map_row(drawn: list[dict], strengths: list[float], seed: int) -> dict:
    """Trend and ends of one size and condition number."""
    ends = {"diagonal": strengths.index(min(strengths)), "full": strengths.index(max(strengths))}
    together = {key: np.concatenate([d[key] for d in drawn]) for key in ("tau", "r", "r_similar")}
    return {
        "trend": spearman(together["tau"], together["r"], seed),
        "trend_similar": spearman(together["tau"], together["r_similar"], seed),
        **{name: median(drawn[k]["r"], seed) for name, k in ends.items()},
        **{f"{name}_similar": median(drawn[k]["r_similar"], seed) for name, k in ends.items()},
        "curve": [
            {
                "tau": float(np.median(d["tau"])),
                "r": [float(v) for v in np.quantile(d["r"], [0.25, 0.5, 0.75])],
                "r_similar": [float(v) for v in np.quantile(d["r_similar"], [0.25, 0.5, 0.75])],
            }
            for d in drawn
        ],
    }


def spearman(a: np.ndarray, b: np.ndarray, seed: int) -> dict:
    """Rank correlation with a bootstrap interval over the pairs."""
    a, b = ranks(a), ranks(b)
    chosen = np.random.default_rng(seed).integers(0, len(a), (1000, len(a)))
    again = [np.corrcoef(a[rows], b[rows])[0, 1] for rows in chosen]
    low, high = np.quantile(again, [0.025, 0.975])
    return {"value": float(np.corrcoef(a, b)[0, 1]), "low": float(low), "high": float(high), "n": len(a)}


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (n,); equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def by_tau(found: dict[str, np.ndarray], bins: int) -> dict[str, np.ndarray]:
    """Median r of the draws in each of `bins` equal ranges of tau, nan where there are few: {name: (bins,)}."""
    place = np.minimum((found["tau"] * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    cells = {"count": count}
    for key in ("r", "r_similar"):
        medians = [np.median(found[key][place == k]) if count[k] >= FEWEST else np.nan for k in range(bins)]
        cells[f"median_{key}"] = np.array(medians)
    return cells
