"""Learning rates chosen by a rule from runs on tuning seeds, and kept as a record that judging runs read.

A tuning experiment has an axis of rates, a factor 2 apart and equally many for every method of a model, and seeds from
100 up, which decide no claim. Its variants end in the rate, `<group>-<rate>`. The rule: the rate with the lowest mean of the
final validation loss over the tuning seeds; a rate at which any run diverged is worse than any number; a best rate at the
edge of its grid is no choice, since a better one may lie outside: the grid has to grow for all methods.

The choice is kept in data/records/<tier>/rates.json with every loss it was based on. An experiment's file says
`lr: {chosen: <experiment>/<group>}` and gets the number; {size} or another axis in the group is the run's own value there,
`times` multiplies it, and `until` is a rate for plans made before the choice. Standard library only: Snakemake parses this at
every call.
"""

import functools
from pathlib import Path

from lowmem import kept_files
from lowmem.errors import Misuse, nearest

TUNING = 100  # first tuning seed; judging seeds lie below
RULE = (
    "lowest mean of the final validation loss over the tuning seeds; a rate with a diverged run is worse than any "
    "number; a best rate at the edge of the grid is no choice"
)


def place(root: Path, tier: str) -> Path:
    """The file with the rates that were chosen for a tier."""
    return Path(root) / "data/records" / tier / "rates.json"


def named(config: dict) -> bool:
    """Whether a configuration names a choice in place of a rate."""
    return isinstance((config.get("optimizer") or {}).get("lr"), dict)


def resolved(root: Path, config: dict, tier: str, axes: dict) -> dict:
    """The configuration with the number in place of `optimizer.lr: {chosen: experiment/group}`; Misuse where none is kept.

    axes: the run's values, which a group may name: with {task: boolq}, rates/{task}-adamw is the choice of boolq-adamw.
    """
    wanted = config["optimizer"]["lr"]
    try:
        experiment, group = str(wanted["chosen"]).format(**axes).split("/")
        known = wanted.keys() <= {"chosen", "until", "times"} and positive(wanted.get("times", 1))
    except (KeyError, IndexError, ValueError):
        known = False
    if not known:
        raise Misuse(f"optimizer.lr: {wanted} is neither a number nor {{chosen: EXPERIMENT/GROUP}}")
    if "until" in wanted and experiment not in of_tier(root, tier):
        lr = wanted["until"]
    else:
        lr = chosen(root, tier, experiment, group)
    lr *= wanted.get("times", 1)
    return {**config, "optimizer": {**config["optimizer"], "lr": lr}}


def positive(number: object) -> bool:
    """Whether a YAML value is a finite number above 0, as `times` has to be; true and false are not."""
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < float("inf")


def awaited(root: Path, config: dict, tier: str) -> str | None:
    """The tuning experiment whose choice a configuration's `until` stands in for; such a run is planned, but never made."""
    wanted = config["optimizer"]["lr"]
    experiment = str(wanted.get("chosen")).partition("/")[0]
    return experiment if "until" in wanted and experiment not in of_tier(root, tier) else None


def of_tier(root: Path, tier: str) -> dict[str, dict]:
    """{experiment: {group: choice}} of all that is kept for a tier."""
    path = place(root, tier)
    return (_read(path, path.stat().st_mtime_ns) if path.is_file() else {}).get("experiments") or {}


def chosen(root: Path, tier: str, experiment: str, group: str) -> float:
    """The kept rate of a group of a tuning experiment; Misuse says how to get one."""
    path, groups = place(root, tier), of_tier(root, tier).get(experiment)
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
    return kept_files.read_json(path)
