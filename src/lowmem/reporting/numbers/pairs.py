"""AdamW beside Adam-mini on one model: the gap of their losses along training, at equal seed."""

import functools
import math
from collections.abc import Callable, Iterable

from lowmem.analysis.stats import Estimate, estimate, paired
from lowmem.reporting.numbers.losses import (
    absent,
    difference,
    final_loss,
    losses,
    over,
    parameters,
    train_losses,
    window,
)
from lowmem.reporting.runs import Run, by_axis, where
from lowmem.reporting.values import Value, missing

MARGIN = 0.7  # % of AdamW's loss; the equivalence margin of workflow/config/claims/, drawn as a dotted line
ONE_RATE = "not run: one rate for both optimizers in this tier"


class Pair:
    """AdamW and Adam-mini on the model of one size: validation losses by seed at common evaluations.

    subject: what stands for Adam-mini on the axis of optimizers, adam_mini_own where it has a rate of its own.
    shape: the model whose features this one has, on an axis of its own, else the name of the size.
    """

    def __init__(self, name: str, runs: Iterable[Run], subject: str = "adam_mini"):
        self.name = name
        self.runs = {
            "adamw": where(runs, size=name, optimizer="adamw"),
            "adam_mini": where(runs, size=name, optimizer=subject),
        }
        first = next(run for group in self.runs.values() for run in group)
        self.parameters = parameters(first.config.get("model", {}))
        self.shape = first.axes.get("shape", name)

    @functools.cached_property
    def curves(self) -> dict[str, dict[int, dict[int, float]]]:
        """{optimizer: {seed: {tokens: validation loss}}} of the finished runs."""
        return {
            o: {run.seed: dict(losses(run)) for run in group if run.status == "done"} for o, group in self.runs.items()
        }

    @functools.cached_property
    def gone(self) -> Value | None:
        """Why the two cannot be compared; None when all runs are done."""
        return absent(self.runs["adam_mini"], self.runs["adamw"])

    @functools.cached_property
    def seeds(self) -> list[int]:
        """Seeds of which both have a curve."""
        return sorted(set.intersection(*({s for s, c in by.items() if c} for by in self.curves.values())))

    @functools.cached_property
    def tokens(self) -> list[int]:
        """The evaluations that all these curves have, by the tokens seen until then."""
        shared = [set(self.curves[o][seed]) for o in self.curves for seed in self.seeds]
        return sorted(set.intersection(*shared)) if shared else []

    @property
    def complete(self) -> bool:
        """Whether all runs are done and share an evaluation."""
        return not self.gone and bool(self.tokens)

    def mean(self, optimizer: str, tokens: int) -> Estimate:
        """Mean validation loss over seeds after so many tokens, nat."""
        return estimate([self.curves[optimizer][seed][tokens] for seed in self.seeds])

    def gaps(self, tokens: int) -> dict[int, float]:
        """{seed: Adam-mini minus AdamW} at a number of tokens."""
        at = {o: {seed: self.curves[o][seed][tokens] for seed in self.seeds} for o in self.curves}
        return paired(at["adam_mini"], at["adamw"])

    def part(self, start: float, end: float) -> dict[int, float]:
        """{seed: mean gap over the evaluations in this part of the run, or at the one nearest to its end}."""
        last = self.tokens[-1]
        inside = [t for t in self.tokens if start * last <= t <= end * last]
        inside = inside or [min(self.tokens, key=lambda tokens: abs(tokens - end * last))]
        gaps = [self.gaps(tokens) for tokens in inside]
        return {seed: sum(gap[seed] for gap in gaps) / len(gaps) for seed in self.seeds}

    def trained(self, early: tuple[float, float], late: tuple[float, float]) -> dict[str, dict]:
        """The gap of the training losses in two parts of the steps and its change: entries "early", "late", "change".

        Training losses stand at every step, on equal batches; two evaluations more or less cannot turn their sign.
        """
        measures = {"early": window(*early), "late": window(*late)}
        found = {name: self.final(measure) for name, measure in measures.items()}

        def change(run: Run) -> float | None:
            return measures["late"](run) - measures["early"](run) if run.status == "done" else None

        return {**found, "change": self.final(change)}

    def slope(self, start: float = 0.1) -> Value:
        """Change of the training gap for each e-fold of steps, from this part of the run on: least squares by seed."""
        if self.gone:
            return self.gone
        by_seed = {}
        for seed in self.seeds:
            found = [train_losses(next(r for r in self.runs[o] if r.seed == seed)) for o in ("adam_mini", "adamw")]
            gaps = [ours - theirs for ours, theirs in zip(*found, strict=False)]
            points = [(math.log(at + 1), gap) for at, gap in enumerate(gaps) if at >= start * len(gaps)]
            by_seed[seed] = least_squares(points) if len(points) > 2 else None
        return over(by_seed) if by_seed and None not in by_seed.values() else missing("not run: a curve is missing")

    def gap(self, start: float = 1.0, end: float = 1.0) -> Value:
        """Mean gap over this part of the run (default: at its last evaluation), as an entry."""
        if not self.complete:
            return self.gone or missing("not run: no common evaluation")
        return over(self.part(start, end))

    def change(self, early: tuple[float, float], late: tuple[float, float]) -> Value:
        """Gap in the late part minus gap in the early part, paired by seed."""
        if not self.complete:
            return self.gap()
        return over(paired(self.part(*late), self.part(*early)))

    def final(self, measure: Callable = final_loss, unit: str = "nat") -> Value:
        """The gap at the end of the run, or of another measure of a run, as an entry."""
        return difference(self.runs["adam_mini"], self.runs["adamw"], measure, unit)

    @property
    def margin(self) -> float:
        """The margin of MARGIN % of AdamW's loss in nat, for this model; 0 without a loss."""
        return MARGIN / 100 * self.mean("adamw", self.tokens[-1]).value if self.complete else 0.0


def pairs(runs: Iterable[Run]) -> list[Pair]:
    """One Pair for each size of model, in the order of the experiment file."""
    return [Pair(name, group) for name, group in by_axis(runs, "size").items()]


def own_rates(runs: Iterable[Run]) -> list[Pair]:
    """As pairs, each optimizer at its own best rate; none where the rates were not chosen for each.

    Where both have the same best rate, the experiment plans one set of runs for both readings.
    """
    runs = list(runs)
    if not all(run.own_rate for run in runs):
        return []
    sizes = by_axis(runs, "size").items()
    subjects = {
        name: "adam_mini_own" if where(group, optimizer="adam_mini_own") else "adam_mini" for name, group in sizes
    }
    return [Pair(name, group, subjects[name]) for name, group in sizes]


def own_rate(runs: Iterable[Run], measure: Callable[[list[Pair]], Value]) -> Value:
    """A value of the reading in which each optimizer has its own best rate, or that the tier has none."""
    sizes = own_rates(runs)
    return measure(sizes) if sizes else missing(ONE_RATE)


def least_squares(points: list[tuple[float, float]]) -> float:
    """Slope of the straight line through (x, y)."""
    x, y = (sum(point[k] for point in points) / len(points) for k in (0, 1))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
