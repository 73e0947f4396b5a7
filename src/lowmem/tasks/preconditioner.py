"""How well Adam's diagonal preconditioner does on a dense block (Adam-mini: condition numbers, tau-r maps).

For H = Q diag(eigenvalues) Q' and D = diag(1 / |Hx|) with Gaussian x: kappa(H), kappa(D H) by singular values, the same
by eigenvalues of sqrt(D) H sqrt(D), tau and r = kappa(D H) / kappa(H). kappa(D H) has no finite mean, since a gradient
coordinate may be as near to zero as it likes: only medians and quantiles are kept.
"""

from pathlib import Path

import numpy as np

from lowmem.analysis import quadratics as q
from lowmem.analysis.stats import bootstrap
from lowmem.errors import Misuse, refuse_unknown

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FEWEST = 20  # least draws in a cell of a map; with fewer it stays empty
MILDEST = 0.002  # rotation strengths between 0 and 1 are drawn from here on, with equal chance for equal ratios
KEYS = {"sets", "size", "kappa", "sizes", "kappas", "draws", "between", "bins"}


def measure(config: dict, seed: int, root: Path) -> dict:
    """measure.sets {name: {values} | {log}} with size: quantiles by set. Or a map of r over tau and measure.sizes (at
    one kappa) or measure.kappas (at one size), eigenvalues spaced by equal ratios from 1 to kappa. draws: of Q and x,
    for each set, or for no and for full rotation; between: draws with random strengths of rotation between these.

    metrics.final: sets {name: {kappa, kappa_dh, kappa_similar, r, r_similar, tau: quantiles, and r_interval of the
    median}}; or rows {size or kappa: {trend: Spearman correlation of tau and r, full: median r at full rotation,
    diagonal: median r without rotation, each {value, low, high, n}}}. Arrays of a map: r, r_similar (rows, bins, 3: the
    quartiles), count (rows, bins), edges (bins + 1,).
    """
    settings = {"size": 30, "kappa": 1000, "draws": 200, "between": 600, "bins": 10, **config["measure"]}
    refuse_unknown(settings, KEYS, "measure")
    if sum(key in settings for key in ("sets", "sizes", "kappas")) != 1:
        raise Misuse("task preconditioner needs one of measure.sets, sizes, kappas")
    generator = np.random.default_rng(seed)
    if "sets" in settings:
        found = {name: table_row(generator, how, settings, seed) for name, how in settings["sets"].items()}
        return {"metrics": {"final": {"sets": found}}}
    over = "sizes" if "sizes" in settings else "kappas"
    rows, cells = {}, []
    for value in settings[over]:
        size, kappa = (value, settings["kappa"]) if over == "sizes" else (settings["size"], value)
        values = np.geomspace(1, kappa, size)
        strengths = np.exp(generator.uniform(np.log(MILDEST), 0, settings["between"]))
        ends = {"diagonal": np.zeros(settings["draws"]), "full": np.ones(settings["draws"])}
        drawn = {name: draws(generator, values, s) for name, s in {**ends, "between": strengths}.items()}
        together = {key: np.concatenate([d[key] for d in drawn.values()]) for key in drawn["full"]}
        rows[str(value)] = map_row(drawn, together, seed)
        cells.append(by_tau(together, settings["bins"]))
    arrays = {key: np.array([cell[key] for cell in cells]) for key in cells[0]}
    arrays["edges"] = np.linspace(0, 1, settings["bins"] + 1)
    return {"metrics": {"final": {"over": over, "rows": rows}}, "arrays": arrays}


def draws(generator: np.random.Generator, eigenvalues, strengths: np.ndarray) -> dict[str, np.ndarray]:
    """{kappa, kappa_dh, kappa_similar, r, r_similar, tau: (count,)}, a draw for each of strengths (count,).

    eigenvalues: an array, or a function that draws them."""
    found = {key: np.empty(len(strengths)) for key in ("kappa", "kappa_dh", "kappa_similar", "tau")}
    for k, strength in enumerate(strengths):
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
    found = draws(generator, lambda: q.spectrum(generator, how, settings["size"]), np.ones(settings["draws"]))
    quantiles = {key: [float(v) for v in np.quantile(values, QUANTILES)] for key, values in found.items()}
    intervals = {f"{key}_interval": median(found[key], seed) for key in ("r", "r_similar")}
    return {**quantiles, **intervals, "draws": settings["draws"]}


def median(values: np.ndarray, seed: int) -> dict:
    """Median with its bootstrap interval."""
    low, high = bootstrap(values, np.median, draws=2000, seed=seed)
    return {"value": float(np.median(values)), "low": low, "high": high, "n": len(values)}


def map_row(drawn: dict[str, dict], together: dict[str, np.ndarray], seed: int) -> dict:
    """Trend and ends of one size and condition number, by both measures of the condition number."""
    found = {}
    for ending in ("", "_similar"):
        found[f"trend{ending}"] = spearman(together["tau"], together[f"r{ending}"], seed)
        found |= {f"{end}{ending}": median(drawn[end][f"r{ending}"], seed) for end in ("diagonal", "full")}
    return found


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
    """Quartiles of r in each of `bins` equal ranges of tau, nan where there are few draws: {name: (bins, 3)}."""
    place = np.minimum((found["tau"] * bins).astype(int), bins - 1)
    cells = {"count": np.bincount(place, minlength=bins)}
    for key in ("r", "r_similar"):
        cells[key] = np.full((bins, 3), np.nan)
        for k in np.flatnonzero(cells["count"] >= FEWEST):
            cells[key][k] = np.quantile(found[key][place == k], [0.25, 0.5, 0.75])
    return cells
