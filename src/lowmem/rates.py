"""Learning rates chosen by a rule from runs on tuning seeds, and kept as a record that judging runs read.

A tuning experiment has an axis of rates, a factor 2 apart and equally many for every method, and seeds from 100 up, which
judge nothing. Its variants end in the rate, `<group>-<rate>`. The rule: the rate with the lowest mean of the final
validation loss over the tuning seeds; a rate at which any run diverged is worse than any number; a best rate at the edge
of its grid is no choice, since a better one may lie outside: the grid has to grow for all methods.

What was chosen stands in data/records/<tier>/rates.json with every loss it was chosen from. An experiment's file says
`lr: {chosen: <experiment>/<group>}` and gets the number. Standard library only: Snakemake parses this at every call.
"""

import functools
from collections.abc import Iterable
from pathlib import Path

from lowmem.errors import Failed, Misuse, nearest
from lowmem.files import read_json, write_json

TUNING = 100  # first tuning seed; judging seeds lie below
RULE = (
    "lowest mean of the final validation loss over the tuning seeds; a rate with a diverged run is worse than any "
    "number; a best rate at the edge of the grid is no choice"
)


def place(root: Path, tier: str) -> Path:
    return Path(root) / "data/records" / tier / "rates.json"


def named(config: dict) -> bool:
    """Whether a configuration names a choice in place of a rate."""
    return isinstance((config.get("optimizer") or {}).get("lr"), dict)


def resolved(root: Path, config: dict, tier: str) -> dict:
    """The configuration with the number in place of `optimizer.lr: {chosen: experiment/group}`; Misuse where none is kept."""
    wanted = config["optimizer"]["lr"]
    if set(wanted) != {"chosen"} or str(wanted["chosen"]).count("/") != 1:
        raise Misuse(f"optimizer.lr: {wanted} is neither a number nor {{chosen: EXPERIMENT/GROUP}}")
    experiment, group = wanted["chosen"].split("/")
    return {**config, "optimizer": {**config["optimizer"], "lr": chosen(root, tier, experiment, group)}}


def chosen(root: Path, tier: str, experiment: str, group: str) -> float:
    """The kept rate of a group of a tuning experiment; Misuse says how to get one."""
    path = place(root, tier)
    kept = _read(path, path.stat().st_mtime_ns) if path.is_file() else {}
    groups = (kept.get("experiments") or {}).get(experiment)
    if groups is None:
        raise Misuse(
            f"{path}: no rate is chosen from {experiment}; run that experiment in tier {tier}, then lowmem rates {experiment}"
        )
    if group not in groups:
        raise Misuse(f"{path}: {experiment} has no group {group!r}{nearest(group, groups)}")
    if groups[group]["lr"] is None:
        raise Misuse(f"{path}: {experiment}/{group} has no rate: {groups[group]['reason']}")
    return groups[group]["lr"]


@functools.cache
def _read(path: Path, changed: int) -> dict:
    return read_json(path)


def choose(runs: Iterable) -> dict[str, dict]:
    """{group: {lr, reason, grid: [{lr, losses: {seed: loss}, mean}]}} of finished tuning runs (exhibit.Run), by RULE."""
    groups: dict[str, dict[float, list]] = {}
    for run in runs:
        if run.seed < TUNING:
            raise Misuse(f"{run.id}: seed {run.seed} judges; a rate is chosen from seeds of {TUNING} and more")
        group = run.variant.rsplit("-", 1)[0]
        groups.setdefault(group, {}).setdefault(run.config["optimizer"]["lr"], []).append(run)
    sizes = {len(grid) for grid in groups.values()}
    if len(sizes) > 1:
        raise Misuse(f"the grids have {sorted(sizes)} rates; every method must get as many")
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


def keep(root: Path, tier: str, experiment: str) -> dict[str, dict]:
    """Choose the rates of a tuning experiment from its records (results/, else the archive) and write them down.

    Returns the choice; Failed when a group has none, after the others are written.
    """
    from lowmem import exhibit

    own = exhibit.load(root, [experiment], tier, {}).all
    if all(run.status == "missing" for run in own):
        own = exhibit.archived_runs(root, f"{tier}/{experiment}")
    found = choose(own)
    path = place(root, tier)
    kept = read_json(path) if path.is_file() else {"rule": RULE, "experiments": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"rule": RULE, "experiments": {**kept["experiments"], experiment: found}})
    without = [f"{group}: {row['reason']}" for group, row in found.items() if row["lr"] is None]
    if without:
        raise Failed(f"{experiment} (tier {tier}): {'; '.join(without)}")
    return found
