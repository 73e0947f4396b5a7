"""Grids of learning rates: every method with all its rates, and its best one.

A method is compared at its best rate, so that none loses because a rate suits another.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import difference, final_loss, lost
from lowmem.reporting.runs import Run, by_axis, ended, unfinished, where
from lowmem.reporting.values import Value, missing


@dataclass(frozen=True)
class RateGrid:
    """A method with all its rates, {rate: runs by seed}, and its best one: the lowest mean final loss over seeds.

    A rate at which a run diverged is worse than any number. Without all its runs a grid has no best rate: `gone` says
    why, and so it does when every rate diverged. `chosen`: the rate that a tuning experiment chose beforehand, on seeds of
    its own, is the best one whatever the seeds shown say, and whether or not other rates were run, unless it diverged.
    """

    name: str
    rates: dict[float, list[Run]]
    chosen: float | None = None

    @property
    def scores(self) -> dict[float, float]:
        """{rate: mean final loss} of the rates at which every seed finished."""
        done = {lr: [final_loss(run) for run in runs] for lr, runs in self.rates.items() if not unfinished(runs)}
        return {lr: sum(found) / len(found) for lr, found in done.items()}

    @property
    def gone(self) -> Value | None:
        """Why there is no best rate; None where there is one."""
        if self.chosen in self.scores:
            return None
        runs = [run for group in self.rates.values() for run in group]
        open_ = [run for run in runs if run.status != "done" and not lost(run)]
        if open_ or not runs:
            return missing(unfinished(open_) or "not run: not planned in this tier")
        return None if self.scores else missing(f"every rate diverged: {unfinished(runs)}")

    @property
    def lr(self) -> float | None:
        """The best rate; None where there is none."""
        if self.gone:
            return None
        return self.chosen if self.chosen in self.scores else min(self.scores, key=self.scores.get)

    @property
    def best(self) -> list[Run]:
        """Runs at the best rate; all runs where there is none, so that a comparison says what is missing."""
        return self.rates[self.lr] if self.lr else [run for group in self.rates.values() for run in group]

    @property
    def rates_tried(self) -> str:
        """The rates at which a run ended as a cell: '0.001, 0.003, 0.01'; one that is planned alone was not tried."""
        return ", ".join(f"{lr:g}" for lr, runs in self.rates.items() if any(map(ended, runs)))

    @property
    def rate(self) -> str:
        """'0.003', with a mark where it is the first or last of several: a better one may lie outside."""
        if self.lr is None:
            return ""
        edge = self.lr != self.chosen and len(self.rates) > 1 and self.lr in (min(self.rates), max(self.rates))
        return f"{self.lr:g}{' (edge)' if edge else ''}"


def tuned(runs: Iterable[Run], methods: str = "optimizer") -> dict[str, RateGrid]:
    """{method: RateGrid} of the runs of one model, in the order of the experiment file. methods: the axis they stand on.

    `own` on the axis `rate` was chosen for the method by a tuning experiment.
    """
    found = {}
    for method, group in by_axis(runs, methods).items():
        rates: dict[float, list[Run]] = {}
        for run in group:
            rates.setdefault(run.config["optimizer"]["lr"], []).append(run)
        own = next((run.config["optimizer"]["lr"] for run in where(group, rate="own") if run.own_rate), None)
        found[method] = RateGrid(method, dict(sorted(rates.items())), own)
    return found


def choice(methods: Iterable[RateGrid]) -> str:
    """At which rates these methods are compared: 'Every method at the best of 3 rates run here'."""
    methods = list(methods)
    if all(one.chosen for one in methods):
        return "Every method at a rate of its own, chosen beforehand on other seeds"
    rates = {lr for one in methods for lr in one.rates}
    if len(rates) == 1:
        return f"Every method at the rate {rates.pop():g}"
    return f"Every method at the best of {scale.between([len(one.rates) for one in methods])} rates run here"


def lead(method: RateGrid, subject: RateGrid) -> Value:
    """Final loss of a baseline minus that of the subject, each at its best rate: above 0 the subject is ahead."""
    for side, failed in ((subject, "subject"), (method, "baseline")):
        if side.gone:
            diverged = side.gone["reason"].startswith("every rate")
            return {**side.gone, **({"failed": failed} if diverged else {})}
    return difference(method.best, subject.best)
