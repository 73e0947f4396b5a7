"""The runs that an exhibit may show: what was planned, what became of it, and which of them it looked at.

An exhibit chooses runs by their place on the axes of their experiment (where, by_axis, Runs.one), never by their names. A run
without a record, with a record of another configuration, or one that ended early is shown as such; nothing is filled in.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lowmem.errors import Failed, Misuse
from lowmem.pipeline import archive, experiments, record

ENDED = ("done", "diverged", "oom")  # with a result that another try would not change


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    status: done, diverged, oom, failed, or missing (no record, or one of another configuration).
    reason: None when done, else a short text that a table cell can show.
    """

    status: str = "missing"
    reason: str | None = "not run: no record"
    record: dict | None = None
    folder: Path | None = None


@dataclass
class Run:
    """One planned run and what became of it.

    axes: its coordinates, {axis: value}; lr is a number. own_rate: its rate was chosen by a tuning experiment. looked_at:
    whether anything has asked what became of it.
    """

    id: str
    experiment: str
    variant: str
    seed: int
    config: dict
    outcome: Outcome = Outcome()
    axes: dict[str, str | float] = field(default_factory=dict)
    own_rate: bool = False
    looked_at: bool = False

    def seen(self) -> Outcome:
        """The outcome, which counts as looked at from now on."""
        self.looked_at = True
        return self.outcome

    @property
    def status(self) -> str:
        """As in Outcome."""
        return self.seen().status

    @property
    def reason(self) -> str | None:
        """As in Outcome."""
        return self.seen().reason

    @property
    def record(self) -> dict | None:
        """The record; None without one of this configuration."""
        return self.seen().record

    @property
    def folder(self) -> Path | None:
        """Where the record lies; None without one."""
        return self.seen().folder

    def final(self, key: str):
        """A number of metrics.final of a finished run, else None."""
        return self.record["metrics"]["final"].get(key) if self.status == "done" else None

    def arrays(self) -> dict:
        """{name: numpy array} that the run wrote beside its record; empty where there are none."""
        return record.read_arrays(self.folder, self.record) if self.status == "done" else {}

    def curve(self) -> list[dict]:
        """The lines of curve.jsonl; empty without a record."""
        return record.curve(self.folder, self.record) if self.folder and self.record else []


@dataclass(frozen=True)
class Runs:
    """The runs of an exhibit, in the order of the experiment files. archived: kept records that its header names."""

    all: list[Run]
    archived: list[Run] = field(default_factory=list)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.all)

    def one(self, seed: int | None = None, **axes) -> Run:
        """The run at a place on the axes (its first seed unless one is named); a missing one is a Run that says so."""
        for run in where(self.all, **axes):
            if seed in (None, run.seed):
                return run
        name = "-".join(str(value) for value in axes.values())
        return Run(name, "", name, 0, {}, Outcome("missing", "not run: not planned in this tier"), axes)

    def used(self) -> list[str]:
        """Ids of those that ended with a result, divergence included, and that something has looked at."""
        found = [run.id for run in (*self.all, *self.archived) if run.looked_at and run.outcome.status in ENDED]
        return list(dict.fromkeys(found))


def ended(run: Run) -> bool:
    """Whether a run has a result that another try would not change, divergence included."""
    return run.status in ENDED


def where(runs: Iterable[Run], **axes) -> list[Run]:
    """Those of the runs that have these values on these axes: where(runs, optimizer="came", lr=0.003)."""
    return [run for run in runs if all(run.axes.get(axis) == value for axis, value in axes.items())]


def by_axis(runs: Iterable[Run], *axes: str) -> dict:
    """{value: its runs} along an axis, {(value, value): its runs} along several, in order; runs without them are left out."""
    found: dict = {}
    for run in runs:
        if all(axis in run.axes for axis in axes):
            values = tuple(run.axes[axis] for axis in axes)
            found.setdefault(values if len(axes) > 1 else values[0], []).append(run)
    return found


def load(root: Path, names: list[str], tier: str, options: dict) -> Runs:
    """All runs of the experiments with their records, if these exist and belong to the present configuration."""
    return Runs([load_run(root, run) for name in names for run in experiments.runs(root, name, tier, options)])


def archived_runs(root: Path, name: str) -> list[Run]:
    """Records of an experiment kept in data/records. name: tier/experiment, e.g. "workstation/char_shakespeare".

    They belong to the present settings but for where the data came from: the same file may come from a folder or https.
    What a tier runs as another does, without an archive of its own, comes from that one's.
    """
    tier, experiment = name.split("/")
    if not archive.archive(root, name).is_file():
        name = f"{experiments.set_by(root, experiment, tier)}/{experiment}"
    found, place = [], archive.folder(root, name)
    for run in experiments.runs(root, experiment, tier):
        folder = place.parent / run["id"]
        with contextlib.suppress(Failed):
            made = record.load(folder)
            if without_source(made["config"]) == without_source(run["config"]):
                run = {**run, "config": made["config"], "config_hash": made["config_hash"]}
        found.append(load_run(root, run, folder))
    return found


def without_source(config: dict) -> dict:
    """A configuration that does not say where its data came from."""
    return {**config, "data": {key: value for key, value in config.get("data", {}).items() if key != "source"}}


def load_run(root: Path, run: dict, folder: Path | None = None) -> Run:
    """One planned run with its record (default: in results/), or with the reason why there is none."""
    known = {key: run[key] for key in ("id", "experiment", "variant", "seed", "config")}
    outcome = outcome_of(root, run, folder or root / "results" / run["tier"] / run["id"])
    return Run(**known, outcome=outcome, axes=run.get("axes", {}), own_rate=run.get("own_rate", False))


def outcome_of(root: Path, run: dict, folder: Path) -> Outcome:
    """What the record in a folder says about a planned run, or why it says nothing."""
    path = folder / "record.json"
    if not path.is_file():
        return Outcome()
    try:
        made = record.load(folder)
        experiments.check(root, made, "record", Path("record.json"))
    except (Failed, Misuse) as error:
        message = getattr(error, "short", error)
        return Outcome("missing", f"not run: the record is damaged ({message})")
    if made["id"] != run["id"]:
        return Outcome("missing", f"not run: the record is damaged (it is that of {made['id']})")
    if made["config_hash"] != run["config_hash"]:
        return Outcome("missing", "not run: the record belongs to another configuration")
    if problem := record.integrity_problem(folder, made, {"curve": record.CURVE}):  # lost arrays cost a picture alone
        return Outcome("missing", f"not run: the record is damaged ({problem})")
    return Outcome(made["status"], failure_reason(made), made, folder)


def failure_reason(record: dict) -> str | None:
    """Short text on a run that did not finish: diverged and out of memory are results and name their step."""
    status, reason = record["status"], record.get("reason")
    if status == "done":
        return None
    if status not in ("diverged", "oom"):
        return f"not run: failed ({reason or 'no reason recorded'})"
    step = ((record.get("metrics") or {}).get("final") or {}).get("step")
    place = reason or (None if step is None else f"at step {step}")
    return {"diverged": "diverged", "oom": "out of memory"}[status] + (f" ({place})" if place else "")


def unfinished(runs: Iterable[Run]) -> str | None:
    """Why some of these runs are not done, equal reasons counted together; None when all are done.

    Reasons that differ in numbers alone are one, with the range of each: (at step 85 to 232).
    """
    runs = list(runs)
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.status != "done":
            found.setdefault(re.sub(r"\d+", "#", run.reason), []).append(run)
    texts = []
    for same in found.values():
        name = f"{same[0].variant}/seed{same[0].seed}"
        others = f" and {len(same) - 1} more of {len(runs)} runs" if len(same) > 1 else ""
        texts.append(f"{ranges([run.reason for run in same])}: {name}{others}")
    return "; ".join(texts) or None


def ranges(reasons: list[str]) -> str:
    """One sentence for reasons that differ in whole numbers alone: each number, or the smallest to the largest."""
    numbers = iter(zip(*(map(int, re.findall(r"\d+", reason)) for reason in reasons), strict=True))

    def between(_) -> str:
        found = next(numbers)
        return f"{min(found)}" if min(found) == max(found) else f"{min(found)} to {max(found)}"

    return re.sub(r"\d+", between, reasons[0])
