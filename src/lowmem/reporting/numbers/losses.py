"""Losses of language-model runs: two optimizers side by side, and the numbers that claims read.

Differences are paired by seed: runs of one seed share first weights and data order. A comparison with a run missing or
diverged has no number but a reason; averaging what is left would favour whoever lost runs.
"""

import math
from collections.abc import Callable, Iterable

from lowmem.analysis.stats import estimate, least, paired, two_way, wider, worst
from lowmem.reporting.runs import Run, unfinished
from lowmem.reporting.values import Value, as_estimate, estimated, missing

WINDOWS = (
    "val_window_losses"  # array of a record: loss on each validation window at the end, equal windows in every run
)


# -- one run ---------------------------------------------------------------------------------------------------------


def losses(run: Run) -> list[tuple[int, float]]:
    """[(tokens, validation loss)] of one run, the first evaluation (untrained) left out."""
    return [
        (row["tokens"], row["val_loss"]) for row in run.curve() if row.get("val_loss") is not None and row["tokens"] > 0
    ]


def train_losses(run: Run) -> list[float]:
    """Training loss of each step; a diverged run ends before the step that broke it."""
    return [row["train_loss"] for row in run.curve() if row.get("train_loss") is not None]


def final_loss(run: Run) -> float | None:
    """Validation loss at the end; None for a run that did not finish."""
    return run.final("val_loss")


def window(start: float, end: float) -> Callable[[Run], float | None]:
    """Measure of a run: its mean training loss over this part of the steps, e.g. window(0.9, 1) for the last tenth."""

    def measure(run: Run) -> float | None:
        found = train_losses(run) if run.status == "done" else []
        part = found[int(start * len(found)) : max(int(end * len(found)), int(start * len(found)) + 1)]
        return sum(part) / len(part) if part else None

    return measure


def parameters(model: dict) -> int | None:
    """Parameters of a GPT-2 or Llama without biases, from its settings; None for a model of another kind."""
    if not {"n_layer", "n_head", "n_embd", "vocab_size"} <= model.keys():
        return None
    width, layers, words = model["n_embd"], model["n_layer"], model["vocab_size"] * model["n_embd"]
    if model["name"] == "gpt2":
        hidden = model.get("n_hidden") or 4 * width
        tables = words * (1 if model.get("tied", True) else 2) + model.get("block_size", 1024) * width
        return layers * (4 * width**2 + 2 * width * hidden + 2 * width) + width + tables
    head = model.get("head_dim") or width // model["n_head"]
    attention = 2 * width * head * (model["n_head"] + (model.get("n_kv_head") or model["n_head"]))
    block = attention + 3 * width * model.get("n_hidden", 768) + 2 * width
    return layers * block + width + words * (1 if model.get("tied") else 2)


# -- numbers for claims ----------------------------------------------------------------------------------------------


def over(by_seed: dict[int, float], unit: str = "nat") -> Value:
    """Mean over seeds with its interval, as an entry that keeps the numbers of the seeds."""
    return estimated(estimate(list(by_seed.values())), unit, by_seed)


def widened(entry: Value, error: float) -> Value:
    """An entry whose interval over seeds also has the standard error of the sample that all seeds are evaluated on."""
    if entry["value"] is None or entry.get("low") is None:
        return entry
    e = wider(as_estimate(entry), error)
    return {**entry, "low": e.low, "high": e.high}


def absent(subject: list[Run], baseline: list[Run]) -> Value | None:
    """Why two groups of runs cannot be compared; None when all runs are done."""
    runs = {run.id: run for run in [*subject, *baseline]}.values()
    reason = unfinished(runs) or (None if subject and baseline else "not run: not planned in this tier")
    if not reason:
        return None
    gone = ["subject"] * any(lost(run) for run in subject) + ["baseline"] * any(lost(run) for run in baseline)
    return missing(reason, gone[0] if len(gone) == 1 else None)


def lost(run: Run) -> bool:
    """Whether a run ended without a result that another try could change."""
    return run.status in ("diverged", "oom")


def difference(subject: list[Run], baseline: list[Run], measure: Callable = final_loss, unit: str = "nat") -> Value:
    """Subject minus baseline, mean of the differences at equal seed with its interval, as an entry of ExhibitResult.values."""
    gone = absent(subject, baseline)
    if gone:
        return gone
    ours, theirs = ({run.seed: measure(run) for run in group} for group in (subject, baseline))
    if None in {*ours.values(), *theirs.values()} or not ours.keys() & theirs.keys():
        return missing("not run: a curve is missing")
    gaps = paired(ours, theirs)
    windows = window_gaps(subject, baseline, measure) if measure in (final_loss, log_loss) else None
    return over(gaps, unit) if windows is None else estimated(two_way(windows), unit, gaps)


def window_gaps(subject: list[Run], baseline: list[Run], measure: Callable) -> list | None:
    """[differences window by window] for each common seed: of the final validation losses in nat, or for log_loss in per
    cent of the loss. None unless every run has its windows."""
    ours, theirs = ({run.seed: run.arrays().get(WINDOWS) for run in group} for group in (subject, baseline))
    pairs_ = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if any(one is None or other is None or one.shape != other.shape for one, other in pairs_):
        return None
    if len({one.shape for one, _ in pairs_}) > 1:
        return None
    return [
        (one - other) * (1 if measure is final_loss else per_cent(one.mean(), other.mean())) for one, other in pairs_
    ]


def per_cent(ours: float, theirs: float) -> float:
    """What a difference of losses is multiplied by to be 100 times that of their logarithms."""
    return 100 * math.log(ours / theirs) / (ours - theirs) if ours != theirs else 100 / theirs


def log_loss(run: Run) -> float | None:
    """100 times the logarithm of the final loss: differences are per cent of the loss, bytes and tokens alike."""
    loss = final_loss(run)
    return None if loss is None else 100 * math.log(loss)


def ratio(ours: dict[int, float], theirs: dict[int, float]) -> Value:
    """Geometric mean of ours / theirs at equal seed, with its interval, as an entry. Both: {seed: number above 0}."""
    logs = estimate([math.log(ours[seed] / theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())])
    middle, low, high = (None if end is None else math.exp(end) for end in (logs.value, logs.low, logs.high))
    return {**estimated(logs, "times"), "value": middle, "low": low, "high": high}


PART = ("value", "low", "high", "n", "method")


def extreme(entries: Iterable[Value], how: Callable) -> Value:
    """The worst or least (stats.py) of several entries, end by end; missing if one of them is, since it could be that.

    "parts" are the entries, for Holm's correction; "pooled" is their mean, the headline of a claim about all of them.
    """
    entries = list(entries)
    gone = [entry for entry in entries if entry["value"] is None]
    if gone or not entries:
        sides = {entry.get("failed") for entry in gone} - {None}
        reason = "; ".join(dict.fromkeys(entry["reason"] for entry in gone)) or "not run: nothing to compare"
        return missing(reason, sides.pop() if len(sides) == 1 else None)
    found = estimated(how([as_estimate(entry) for entry in entries]), entries[0]["unit"])
    found["settings"] = len(entries)
    if len(entries) < 2:
        return found
    return {**found, "parts": [{key: entry[key] for key in PART} for entry in entries], **pooled(entries)}


def pooled(entries: list[Value]) -> dict[str, Value]:
    """{"pooled": mean over the entries at equal seed}, which allows for runs that they share; {} without common seeds."""
    seeds = set.intersection(*(set(entry.get("by_seed", {})) for entry in entries))
    if not seeds:
        return {}
    means = {s: sum(entry["by_seed"][s] for entry in entries) / len(entries) for s in sorted(seeds, key=int)}
    return {"pooled": over(means, entries[0]["unit"])}


def largest(entries: Iterable[Value]) -> Value:
    """The worst of several entries, see extreme."""
    return extreme(entries, worst)


def smallest(entries: Iterable[Value]) -> Value:
    """The least of several entries, see extreme."""
    return extreme(entries, least)


def mean(runs: list[Run], measure: Callable = final_loss) -> Value:
    """Mean of a measure over seeds, as an entry."""
    gone = absent(runs, runs)
    found = [measure(run) for run in runs] if not gone else []
    return gone or (missing("not run: a curve is missing") if None in found else estimated(estimate(found)))
