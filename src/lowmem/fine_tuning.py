"""Shared by the exhibits on SuperGLUE: runs as tasks and methods, accuracies, and honest names of what was really asked.

A variant is task-method_point, e.g. boolq-lomo_3e.2; a method's first point is the one fixed before any run.
"""

import re
from collections.abc import Iterable

from lowmem.curves import absent, missing, value
from lowmem.exhibit import Run
from lowmem.stats import estimate

TASKS = {"rte": "RTE", "boolq": "BoolQ", "wsc": "WSC", "wic": "WIC", "multirc": "MultiRC", "copa": "COPA"}  # as printed
STAND_INS = {  # table of a package: (task, what it is)
    "boolq": ("boolq", "BoolQ"),
    "wic": ("wic", "WordNet senses (for WIC)"),
    "rte": ("rte", "WordNet substitution (for RTE)"),
    "openbookqa": ("multirc", "OpenBookQA answers (for MultiRC)"),
    "piqa": ("copa", "PIQA (for COPA)"),
}
METHODS = {
    "zero": "no training",
    "lora": "LoRA",
    "lomo": "LOMO",
    "lora_lomo": "LoRA + LOMO",
    "prefix": "prefix tuning",
    "adamw": "AdamW",
    "adalomo": "AdaLomo",
    "adam_mini": "Adam-mini",
    "adam_mini_backward": "Adam-mini in backward",
}
PUBLISHED = {"zero": "Zero-shot", "lora": "LoRA", "lomo": "LOMO"}
NEEDS = "not run: needs the hub or superglue_dir"

Points = dict[str, list[Run]]  # {point of a method's grid: its runs by seed}


def asked(run: Run) -> tuple[str, str]:
    """(task, name of the data that was really used): ("copa", "PIQA (for COPA)")."""
    data = run.config.get("data", {})
    if data.get("part"):
        return STAND_INS[data["part"]]
    task = data.get("dataset", "").removeprefix("superglue_")
    return task, TASKS.get(task, task)


def method(run: Run) -> tuple[str, str]:
    """(method, point of its grid): boolq-lomo_3e.2_w20 -> ("lomo", "3e.2_w20")."""
    name = run.variant.split("-", 1)[1]
    found = re.fullmatch(r"(.+?)_(\d+e\.\d.*)", name)
    return (found[1], found[2]) if found else (name, "")


def grouped(runs: Iterable[Run]) -> dict[tuple[str, str], Points]:
    """{(task, method): {point: runs by seed}}, in the order of the experiment file."""
    found: dict[tuple[str, str], Points] = {}
    for run in runs:
        name, point = method(run)
        found.setdefault((asked(run)[0], name), {}).setdefault(point, []).append(run)
    return found


def first(points: Points) -> list[Run]:
    """Runs of the point that was fixed beforehand."""
    return next(iter(points.values()), [])


def accuracies(run: Run) -> list[tuple[int, float]]:
    """[(step, accuracy in percent)] of one run's evaluations."""
    return [(row["step"], row["accuracy"]) for row in run.curve() if row.get("accuracy") is not None]


def losses(run: Run) -> list[tuple[int, float]]:
    """[(step, training loss)] of one run."""
    return [(row["step"], row["train_loss"]) for row in run.curve() if row.get("train_loss") is not None]


def last(runs: list[Run]) -> dict:
    """Mean accuracy over seeds at the last epoch, as an entry."""
    return over_seeds(runs, lambda run: run.final("accuracy"))


def over_seeds(runs: list[Run], measure) -> dict:
    gone = absent(runs, runs)
    return gone or value(estimate([measure(run) for run in runs]), "%")


def best(points: Points) -> dict:
    """The best accuracy of any point and epoch at the first seed, on the split that is reported: as the paper prints it."""
    runs = [group[0] for group in points.values() if group]
    gone = absent(runs, runs)
    found = [score for run in runs for _, score in accuracies(run)]
    return gone or {"value": max(found), "n": 1, "unit": "%"}


def by_seed(runs: list[Run]) -> dict[int, float]:
    """{seed: accuracy at the last epoch}; a single run of something without randomness stands for every seed (key -1)."""
    done = {run.seed: run.final("accuracy") for run in runs if run.status == "done"}
    return {-1: next(iter(done.values()))} if len(done) == 1 else done


def gain(found: dict[tuple[str, str], Points], subject: str, baseline: str, unit: str = "points") -> dict:
    """Subject minus baseline in accuracy at the last epoch: the mean over tasks at equal seed, then over seeds."""
    tasks = [task for task, name in found if name == subject and (task, baseline) in found]
    pairs = [(first(found[task, subject]), first(found[task, baseline])) for task in tasks]
    if not pairs:
        return missing("not run: not planned in this tier")
    for ours, theirs in pairs:
        if gone := absent(ours, theirs):
            return gone
    seeds = [run.seed for run in pairs[0][0]]
    totals = [sum(at(ours, seed) - at(theirs, seed) for ours, theirs in pairs) / len(pairs) for seed in seeds]
    return value(estimate(totals), unit)


def at(runs: list[Run], seed: int) -> float:
    scores = by_seed(runs)
    return scores[seed] if seed in scores else scores[-1]


def average(found: dict[tuple[str, str], Points], name: str) -> dict:
    """Mean over the tasks of this method, then over seeds, as an entry."""
    groups = [first(points) for (_, other), points in found.items() if other == name]
    gone = absent([run for group in groups for run in group], [run for group in groups for run in group])
    if gone:
        return gone
    seeds = [run.seed for run in groups[0]]
    return value(estimate([sum(at(group, seed) for group in groups) / len(groups) for seed in seeds]), "%")
