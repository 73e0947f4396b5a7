"""What has to hold before a comparison of methods says anything: the gates of workflow/config/claims/, and a grid of
rates read at one rate for all, as the paper runs it."""

from collections.abc import Iterable

from lowmem.reporting.numbers.losses import final_loss, largest, mean, smallest
from lowmem.reporting.numbers.rate_grids import RateGrid, lead
from lowmem.reporting.runs import Run
from lowmem.reporting.values import Value, missing


def behind(adamw: RateGrid | None, baselines: Iterable[RateGrid]) -> Value:
    """AdamW minus each baseline, each at its best rate, the largest: above 0 a baseline is ahead of AdamW itself, and a
    comparison with Adam-mini does not ask the paper's question."""
    return largest(lead(adamw, one) for one in baselines) if adamw else missing("not run: no AdamW in this tier")


def leads_at(lr: float | None, subject: RateGrid, baselines: Iterable[RateGrid]) -> Value:
    """Smallest lead of the subject over the baselines with this one rate for all of them."""
    baselines = list(baselines)
    if lr is None:
        return missing("not run: the best rate of AdamW is not known")
    absent = [one.name for one in (subject, *baselines) if lr not in one.rates]
    if absent:
        return missing(f"not run: {', '.join(absent)} at AdamW's best rate {lr:g}")
    alone = [RateGrid(one.name, {lr: one.rates[lr]}) for one in (subject, *baselines)]
    return smallest(lead(one, alone[0]) for one in alone[1:])


def progress(runs: list[Run]) -> Value:
    """How far a method's validation loss has fallen from its start (nat), mean over seeds: below about 0 it stands still."""

    def fall(run: Run) -> float | None:
        start = next((row["val_loss"] for row in run.curve() if row.get("val_loss") is not None), None)
        return None if start is None or final_loss(run) is None else start - final_loss(run)

    return mean(runs, fall)
