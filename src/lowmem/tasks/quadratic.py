"""A random quadratic with dense blocks: one rate, Adam, and one rate per block (Adam-mini, Figure 4).

Every method has its best rate. "beta2 = 1" of the paper is read in both ways: v frozen at the first squared gradient,
where Adam is preconditioned gradient descent and its best rate is known, and v accumulated over all steps (AdaGrad),
where the rate is the best of a grid for each number of steps.
"""

from pathlib import Path

import numpy as np

from lowmem.analysis import quadratics as q
from lowmem.errors import Misuse, refuse_unknown

METHODS = ("single", "adam_frozen", "adam_accumulated", "blockwise")


def measure(config: dict, seed: int, root: Path) -> dict:
    """One draw of H and w. measure: blocks {name: {values: [...]} | {log: [low, high]}}, size (of each block),
    horizons (numbers of steps that are reported), rates {low, high, count} (grid of powers of ten).

    metrics.final: tau and kappa by block, kappa by method, and losses {problem: {horizon: {method: loss}}} where the
    problem is "total" or one block alone, which each method then solves for itself. arrays: "<problem>.<method>" losses
    before each step (steps + 1,), "blocks.<method>" those of "total" by block, and "hessian".
    """
    settings = {"size": 30, "horizons": [100, 1000], "rates": {"low": -3, "high": 2, "count": 21}, **config["measure"]}
    refuse_unknown(settings, {"blocks", "size", "horizons", "rates"}, "measure")
    if "blocks" not in settings:
        raise Misuse("task quadratic needs measure.blocks")
    rates = settings["rates"]
    if rates["low"] > rates["high"]:
        raise Misuse(f"measure.rates: low {rates['low']} is above high {rates['high']}")
    generator = np.random.default_rng(seed)
    names, size = list(settings["blocks"]), settings["size"]
    blocks = [q.dense(generator, q.spectrum(generator, how, size)) for how in settings["blocks"].values()]
    w = generator.standard_normal(size * len(blocks))
    grid = np.logspace(rates["low"], rates["high"], rates["count"])
    problems = {"total": (blocks, w)}
    for k, name in enumerate(names):
        problems[name] = ([blocks[k]], w[k * size : (k + 1) * size])
    final = {
        "tau": {name: q.tau(block) for name, block in zip(names, blocks, strict=True)},
        "kappa": {name: q.kappa(block) for name, block in zip(names, blocks, strict=True)},
        "effective_kappa": effective(blocks, w),
        "losses": {},
    }
    arrays = {"hessian": q.block_diagonal(blocks).astype(np.float32)}
    for name, (parts, start) in problems.items():
        curves = solve(parts, start, settings["horizons"], grid)
        final["losses"][name] = {str(h): {m: curves[m, h] for m in METHODS} for h in settings["horizons"]}
        final["losses"][name]["0"] = {m: float(curves[m][0].sum()) for m in METHODS}
        for method in METHODS:
            arrays[f"{name}.{method}"] = curves[method].sum(axis=1)
            if name == "total":
                arrays[f"blocks.{method}"] = curves[method]
    return {"metrics": {"final": final}, "arrays": arrays}


def effective(blocks: list[np.ndarray], w: np.ndarray) -> dict[str, float]:
    """The condition number that decides each method's speed; for Adam that of sqrt(D) H sqrt(D)."""
    values = [np.linalg.eigvalsh(block) for block in blocks]
    scale = q.adam_scale(q.block_diagonal(blocks), w)
    return {
        "single": float(max(v[-1] for v in values) / min(v[0] for v in values)),
        "adam_frozen": q.kappa_similar(q.block_diagonal(blocks), scale),
        "blockwise": float(max(v[-1] / v[0] for v in values)),
    }


def solve(blocks: list[np.ndarray], w: np.ndarray, horizons: list[int], grid: np.ndarray) -> dict:
    """{method: losses by block (steps + 1, blocks), (method, horizon): total loss there}; the accumulated form's curve
    has the best rate for the last horizon, its losses at each horizon have the best rate for that one."""
    hessian, sizes, steps = q.block_diagonal(blocks), [len(b) for b in blocks], max(horizons)
    values = [np.linalg.eigvalsh(block) for block in blocks]
    ends = [(v[0], v[-1]) for v in values]
    one = q.best_rate(min(low for low, _ in ends), max(high for _, high in ends))
    scale = q.adam_scale(hessian, w)
    root = np.sqrt(scale)
    turned = np.linalg.eigvalsh(hessian * root[:, None] * root[None, :])
    rates = {
        "single": np.full(len(w), one),
        "adam_frozen": q.best_rate(turned[0], turned[-1]) * scale,
        "blockwise": np.repeat([q.best_rate(*end) for end in ends], sizes),
    }
    found = {method: q.descend(hessian, w, rate, steps, sizes) for method, rate in rates.items()}
    tried = q.accumulate(hessian, w, grid, steps, sizes)  # (steps + 1, rates, blocks)
    total = np.nan_to_num(tried.sum(axis=2), nan=np.inf)
    found["adam_accumulated"] = tried[:, total[steps].argmin()]
    for h in horizons:
        found |= {(method, h): float(found[method][h].sum()) for method in rates}
        found["adam_accumulated", h] = float(total[h].min())
    return found
