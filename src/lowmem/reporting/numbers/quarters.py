"""Vision, diffusion and graph runs: a metric at 25, 50, 75 and 100 % of training, optimizers paired by seed.

Accuracies are compared in points, losses in per cent: 100 times the difference of their
logarithms, since losses of different models have no common scale. Both are signed so that above 0 is worse.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lowmem.reporting import display
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.losses import difference, mean, widened
from lowmem.reporting.runs import Run, Runs, by_axis, where
from lowmem.reporting.values import Value, text

QUARTERS = (0.25, 0.5, 0.75, 1.0)
OPTIMIZERS = ("adamw", "adam_mini", "adam_mini_neuron")
COLUMNS = ["model", "optimizer", "metric", *(f"{q:.0%}" for q in QUARTERS), "behind AdamW at the end", "seeds"]
BEHIND = (
    "Behind AdamW: points of accuracy, or per cent of loss, at equal seed with its 95 % interval; above 0 is worse. "
    "That of an accuracy on a sample of the test part has the sample's error in it, that of a loss the seeds' alone."
)


@dataclass(frozen=True)
class Metric:
    """key: column of the curve. label: with its unit. scale: what a value is multiplied by. gap(value): what differences
    are taken of, in `unit`, larger being worse.
    """

    key: str
    label: str
    scale: float
    digits: int
    unit: str
    gap: Callable[[float], float]


ACCURACY = Metric("val_accuracy", "validation accuracy (%)", 100, 2, "points", lambda share: -100 * share)
TEST = Metric("test_accuracy", "test accuracy (%)", 100, 2, "points", lambda share: -100 * share)
LOSS = Metric("val_loss", "validation loss (mean squared error)", 1, 4, "%", lambda loss: 100 * math.log(loss))


def at(run: Run, metric: Metric, part: float) -> float | None:
    """The metric at the evaluation nearest to this part of the steps; None without one, or when the run did not finish."""
    found = series(run, metric, "step") if run.status == "done" else []
    wanted = part * run.config["train"]["steps"]
    return min(found, key=lambda point: abs(point[0] - wanted))[1] if found else None


def series(run: Run, metric: Metric, by: str) -> list[tuple[float, float]]:
    """[(step or other column, metric)] of the evaluations, the untrained model left out."""
    return [(row[by], row[metric.key]) for row in run.curve() if row.get(metric.key) is not None and row["step"] > 0]


def of(runs: Iterable[Run], model: str) -> dict[str, list[Run]]:
    """{optimizer: runs by seed} of a model, in the order of OPTIMIZERS; empty where none are planned."""
    found = by_axis(where(runs, model=model), "optimizer")
    return {optimizer: found[optimizer] for optimizer in OPTIMIZERS if optimizer in found}


def behind(groups: dict[str, list[Run]], metric: Metric, subject: str = "adam_mini", base: str = "adamw") -> Value:
    """How far the subject ends behind the base, paired by seed, as an entry of ExhibitResult.values."""

    def measure(run: Run) -> float | None:
        last = at(run, metric, 1)
        return None if last is None else metric.gap(last)

    both = [*groups.get(subject, []), *groups.get(base, [])]
    entry = difference(groups.get(subject, []), groups.get(base, []), measure, metric.unit)
    return widened(entry, sampling(both, metric)) if metric in (ACCURACY, TEST) else entry


def sampling(runs: list[Run], metric: Metric) -> float:
    """Standard error in points of a difference of two accuracies on the same sample of the test part, as if both networks
    erred independently, which is the most it can be while they err alike. 0 where all of the test part is asked."""
    train = runs[0].config["train"] if runs else {}
    if not train.get("eval_batches"):
        return 0.0
    asked = train["eval_batches"] * (train.get("micro_batch_size") or train["batch_size"])
    shares = [share for share in (at(run, metric, 1) for run in runs) if share is not None]
    middle = sum(shares) / len(shares) if shares else 0.0
    return 100 * math.sqrt(2 * middle * (1 - middle) / asked)


def add_rows(shown: ExhibitResult, label: str, groups: dict[str, list[Run]], metric: Metric) -> None:
    """One row for each optimizer: the metric at each quarter, mean over seeds, and how far behind AdamW it ends."""
    for optimizer, runs in groups.items():
        cells = [short(mean(runs, lambda run, q=q: at(run, metric, q)), metric) for q in QUARTERS]
        gap = "" if optimizer == "adamw" else f"{text(behind(groups, metric, optimizer), True, 2)}"
        shown.rows.append([label, display.name(optimizer), metric.label, *cells, gap, len(runs)])


def short(entry: dict, metric: Metric) -> str:
    """A mean without its interval, or the reason for none."""
    return entry["reason"] if entry["value"] is None else f"{metric.scale * entry['value']:.{metric.digits}f}"


def data_of(runs: Runs | list[Run]) -> str:
    """The datasets that runs are about, as text."""
    return ", ".join(dict.fromkeys(run.config["data"]["dataset"] for run in runs if "data" in run.config))
