"""Panel i of Adam-mini's Figure 7: training with PyTorch's tensors as blocks, and how unsteady it is."""

import itertools
import statistics

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import absent, mean, ratio, train_losses
from lowmem.reporting.numbers.rate_grids import RateGrid, lead, tuned
from lowmem.reporting.panels.losses import by_rate, corner, faint
from lowmem.reporting.runs import Run, Runs, by_axis
from lowmem.reporting.values import Value, missing, text

SHOWN = ("adamw", "adam_mini", "default_partition")
MOST_POINTS = 110  # of a line
WINDOW = 0.02  # of the steps: the moving mean whose rises are counted


def methods(runs: Runs) -> dict[str, RateGrid]:
    """The three methods on the largest model of llama_variants: 1B in the paper."""
    *_, largest = by_axis((run for run in runs if run.experiment == "llama_variants"), "size").values()
    found = tuned(largest)
    return {name: found[name] for name in SHOWN}


def at_adamw_rate(found: dict[str, RateGrid]) -> dict[str, list[Run]]:
    """{method: runs at the rate that is best for AdamW}; all its runs where that is not known."""
    lr = found["adamw"].lr
    return {name: one.rates.get(lr, one.best) for name, one in found.items()}


def setback(run: Run) -> float:
    """Largest rise of the training loss (moving mean over WINDOW of the steps) above its lowest value so far.

    A spike is one; a plateau, whose many small rises add up to as much, is none.
    """
    losses = smooth(run)
    lowest = itertools.accumulate(losses, min)
    return max((now - low for now, low in zip(losses, lowest, strict=True)), default=0.0)


def smooth(run: Run) -> list[float]:
    """Moving mean of the training loss, over WINDOW of the steps."""
    losses = train_losses(run)
    width = max(1, round(WINDOW * len(losses)))
    return [sum(losses[at : at + width]) / width for at in range(len(losses) - width + 1)]


def roughness(default: list[Run], proposed: list[Run]) -> Value:
    """Largest setback under the default partition over that under the paper's: geometric mean over seeds."""
    gone = absent(default, proposed)
    if gone:
        return gone
    theirs = {run.seed: setback(run) for run in proposed}
    ours = {run.seed: setback(run) for run in default}
    if min(*ours.values(), *theirs.values()) <= 0:
        return missing("not run: a curve without rises is too short to judge")
    return ratio(ours, theirs)


def add(shown: ExhibitResult, found: dict[str, RateGrid]) -> None:
    """Rows and values of panel i."""
    at = at_adamw_rate(found)
    shown.values["default.excess"] = lead(found["default_partition"], found["adam_mini"])
    shown.values["default.roughness"] = roughness(at["default_partition"], at["adam_mini"])
    for name, one in found.items():
        loss = text(one.gone or mean(one.best))
        shown.rows.append(
            ["Llama", "i", display.name(name), f"best rate {one.rate}", "whole run", loss, "", "", len(one.best)]
        )
    for key, words in (
        ("default.excess", "excess loss (nat)"),
        ("default.roughness", "largest setback of the loss, times"),
    ):
        entry = shown.values[key]
        cells = ["Llama", "i", f"default partition: {words}", "", "whole run", text(entry), "", "", entry.get("n", "")]
        shown.rows.append(cells)


def draw(axes, rates, found: dict[str, RateGrid]) -> None:
    """Left (axes): training loss at AdamW's best rate, seeds thin. Right (rates): final loss by rate."""
    by_rate(rates, found, names="ends")
    rates.set_title("(i) by learning rate")
    heights = []
    for name, runs in at_adamw_rate(found).items():
        look = plots.look(name)
        curves = [(run, smooth(run)) for run in runs if train_losses(run)]
        every = runs[0].config["train"].get("log_every", 1) if runs else 1  # steps from one loss to the next
        for run, curve in curves:
            axes.plot(*thinned(curve, every), **faint(look["color"]))
            if run.status == "diverged":
                axes.plot(every * (len(curve) - 1), curve[-1], marker="x", color=look["color"], markersize=7)
        done = [curve for run, curve in curves if run.status == "done"]
        if done:
            middle = [statistics.median(column) for column in zip(*done)]  # a mean would be its worst seed
            axes.plot(*thinned(middle, every), **look)
            heights += middle[len(middle) // 6 :]
    if not heights:
        plots.empty(axes, "not run: no record")
        return
    axes.set_ylim(min(heights) - 0.05, max(heights) + 0.05)
    axes.set_xlim(0)
    axes.set(xlabel="step", ylabel=scale.loss(at_adamw_rate(found)["adamw"], "training loss"))
    axes.set_title("(i) Llama at AdamW's best rate")
    corner(axes, list(found))


def thinned(curve: list[float], every: int) -> tuple[list[int], list[float]]:
    """(steps, losses) of at most MOST_POINTS points of a curve with a loss every so many steps: more would not be seen."""
    apart = -(-len(curve) // MOST_POINTS)
    return [every * at for at in range(0, len(curve), apart)], curve[::apart]
