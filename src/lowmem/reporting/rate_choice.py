"""Learning rates chosen from the records of a tuning experiment, by the rule that pipeline/rates.py states."""

from collections.abc import Iterable
from pathlib import Path

from lowmem import kept_files
from lowmem.errors import Failed, Misuse
from lowmem.pipeline.rates import RULE, TUNING, place


def choose(runs: Iterable) -> dict[str, dict]:
    """{group: {lr, reason, grid: [{lr, losses: {seed: loss}, mean}]}} of finished tuning runs (runs.Run), by RULE."""
    groups: dict[str, dict[float, list]] = {}
    for run in runs:
        if run.seed < TUNING:
            raise Misuse(f"{run.id}: seed {run.seed} judges; a rate is chosen from seeds of {TUNING} and more")
        group = "-".join(value for axis, value in run.axes.items() if axis != "lr")
        groups.setdefault(group, {}).setdefault(run.config["optimizer"]["lr"], []).append(run)
    counts: dict[str, set[int]] = {}
    for group, grid in groups.items():
        counts.setdefault(group.rpartition("-")[0], set()).add(len(grid))
    for model, found in counts.items():
        if len(found) > 1:
            raise Misuse(f"{model or 'the grids'}: {sorted(found)} rates; every method must get as many")
    return {group: choose_one(dict(sorted(grid.items()))) for group, grid in groups.items()}


def choose_one(grid: dict[float, list]) -> dict:
    """The choice of one group; grid: {rate: its runs}, ascending."""
    rows, missing = [], []
    for lr, found in grid.items():
        losses = {str(run.seed): run.final("val_loss") for run in found}
        missing += [run.id for run in found if run.status not in ("done", "diverged")]
        mean = None if None in losses.values() else sum(losses.values()) / len(losses)
        rows.append({"lr": lr, "losses": losses, "mean": mean})
    if missing:
        return {"lr": None, "reason": f"not run: {missing[0]}", "grid": rows}
    finished = [row for row in rows if row["mean"] is not None]
    if not finished:
        return {"lr": None, "reason": "diverged at every rate", "grid": rows}
    best = min(finished, key=lambda row: row["mean"])["lr"]
    if len(rows) > 1 and best in (rows[0]["lr"], rows[-1]["lr"]):
        side = "below" if best == rows[0]["lr"] else "above"
        return {"lr": None, "reason": f"best rate {best:g} at the edge; extend the grid {side} it", "grid": rows}
    return {"lr": best, "reason": None, "grid": rows}


def keep(root: Path, tier: str, experiment: str, options: dict | None = None) -> dict[str, dict]:
    """Choose the rates of a tuning experiment from its records (results/, else the archive) and write them down.

    options: as of the runs, in results/ alone. Returns the choice; Failed when a group has none, after the others are written.
    """
    from lowmem.reporting import runs

    own = runs.load(root, [experiment], tier, options or {}).all
    if all(run.status == "missing" for run in own):
        own = runs.archived_runs(root, f"{tier}/{experiment}")
    found = choose(own)
    path = place(root, tier)
    kept = kept_files.read_json(path) if path.is_file() else {"rule": RULE, "experiments": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    kept_files.write_json(path, {"rule": RULE, "experiments": {**kept["experiments"], experiment: found}})
    without = [f"{group}: {row['reason']}" for group, row in found.items() if row["lr"] is None]
    if without:
        raise Failed(f"{experiment} (tier {tier}): {'; '.join(without)}")
    return found
