"""Shared by the exhibits on SuperGLUE: runs as tasks and methods, accuracies, and honest names of what was really asked.

A method may have several points, a rate with or without a warm-up; the first is the one fixed before any run.
"""

import math
from collections.abc import Iterable

from lowmem.analysis.stats import estimate, share
from lowmem.data import superglue_sources
from lowmem.reporting.numbers import same_questions
from lowmem.reporting.numbers.losses import absent, widened
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import Value, estimated, missing

TASKS = {"rte": "RTE", "boolq": "BoolQ", "wsc": "WSC", "wic": "WIC", "multirc": "MultiRC", "copa": "COPA"}  # as printed
STAND_INS = {  # table of a package: (task, what it is)
    "boolq": ("boolq", "BoolQ"),
    "wic": ("wic", "WordNet senses (for WIC)"),
    "rte": ("rte", "WordNet substitution (for RTE)"),
    "openbookqa": ("multirc", "OpenBookQA answers (for MultiRC)"),
    "piqa": ("copa", "PIQA (for COPA)"),
    "wsc": ("wsc", "Winograd sentences of BIG-bench (for WSC)"),
    "multirc": ("multirc", "MultiRC of BIG-bench, split anew (for MultiRC)"),
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
    "lomo_free": "LOMO, not clipped",
    "lomo_bf16": "LOMO, bf16 weights",
    "lomo_bf16_stochastic": "LOMO, bf16, stochastic rounding",
    "adalomo_bf16": "AdaLomo, bf16 weights",
    "adalomo_bf16_stochastic": "AdaLomo, bf16, stochastic rounding",
}
LIVE = ("smoke", "laptop")  # tiers whose own runs take a few steps: they show that everything works and judge nothing
JUDGES_NOTHING = "not run: a few live steps judge nothing here; the runs of tier overnight do"
PUBLISHED = {"zero": "Zero-shot", "lora": "LoRA", "lomo": "LOMO"}

UNITS = {"accuracy": "points", "choice_loss": "nat per question"}

Points = dict[str, list[Run]]  # {point of a method's grid: its runs by seed}


def needs(task: str) -> str:
    """Why a task is not run where the tier has nothing to stand in for it."""
    ways = ", superglue_dir or bigbench=true" if task in superglue_sources.IN_BIGBENCH else " or superglue_dir"
    return f"not run: needs the hub{ways}"


def asked(run: Run) -> tuple[str, str]:
    """(task, name of the data that was really used): ("copa", "PIQA (for COPA)")."""
    data = run.config.get("data", {})
    if data.get("part"):
        return STAND_INS[data["part"]]
    task = data.get("dataset", "").removeprefix("superglue_")
    return task, TASKS.get(task, task)


def method(run: Run) -> tuple[str, str]:
    """(method, point of its grid), e.g. ("lomo", "3e.2_w20"); "" for the point of a method that has one alone."""
    return run.axes["method"], run.axes.get("point", "")


def grouped(runs: Iterable[Run]) -> dict[tuple[str, str], Points]:
    """{(task, method): {point: runs by seed}}, in the order of the experiment file."""
    found: dict[tuple[str, str], Points] = {}
    for run in runs:
        name, point = method(run)
        found.setdefault((asked(run)[0], name), {}).setdefault(point, []).append(run)
    return found


def long_runs(runs: Runs, tier: str) -> list[Run]:
    """The runs of tier overnight: this report's own there, elsewhere those that are archived."""
    return [run for run in (runs if tier == "overnight" else runs.archived) if run.experiment == "superglue"]


def pilot_runs(runs: Runs) -> list[Run]:
    """The archived runs that say which tasks a model of this size can learn (learnable.py)."""
    return [run for run in runs.archived if run.experiment == "superglue_pilot"]


def first(points: Points) -> list[Run]:
    """Runs of the point that was fixed beforehand."""
    return next(iter(points.values()), [])


def accuracies(run: Run) -> list[tuple[int, float]]:
    """[(step, accuracy in percent)] of one run's evaluations."""
    return [(row["step"], row["accuracy"]) for row in run.curve() if row.get("accuracy") is not None]


def losses(run: Run) -> list[tuple[int, float]]:
    """[(step, training loss)] of one run."""
    return [(row["step"], row["train_loss"]) for row in run.curve() if row.get("train_loss") is not None]


def last(runs: list[Run]) -> Value:
    """Mean accuracy over seeds at the last epoch, as an entry; the interval allows for the questions that all seeds share."""
    gone = absent(runs, runs)
    return gone or percent([run.final("accuracy") for run in runs], sampling([runs]))


def sampling(*sides: list[list[Run]]) -> float:
    """Standard error in points, from which questions were asked, of a mean accuracy over groups (one side), or of the
    difference of two such means: as if both erred independently, which is the most it can be while they err alike."""
    variance = 0.0
    for groups in sides:
        for group in groups:
            share_ = sum(run.final("accuracy") for run in group) / len(group) / 100
            variance += share_ * (1 - share_) / questions(group[0]) / len(groups) ** 2
    return 100 * math.sqrt(variance)


def among_questions(entry: Value, groups: list[list[Run]]) -> Value:
    """An accuracy of one seed gets the interval that follows from how many questions were asked; others stay."""
    if entry.get("n") != 1:
        return entry
    low, high = share(entry["value"] / 100, len(groups) * min(questions(group[0]) for group in groups))
    return {**entry, "low": 100 * low, "high": 100 * high, "method": "questions"}


def questions(run: Run) -> int:
    """How many were asked; records from before this was counted had as many as their configuration says."""
    return run.final("questions") or run.config["measure"].get("val_examples", 1000)


def percent(shares: list[float], error: float = 0.0) -> Value:
    """Mean of accuracies as an entry; the t-interval of few seeds may leave 0 to 100, which no accuracy can."""
    found = widened(estimated(estimate(shares), "%"), error)
    ends = {key: min(max(found[key], 0.0), 100.0) for key in ("low", "high") if found[key] is not None}
    return {**found, **ends}


def above_frequent(found: dict[tuple[str, str], Points], name: str) -> Value:
    """A method's average accuracy minus that of always giving each task's most frequent answer, as an entry: the premise of
    reading its accuracy as learning. Missing where a record does not say how frequent that answer is."""
    groups = [first(points) for (_, other), points in found.items() if other == name]
    entry, most = average(found, name), [group[0].final("most") if group else None for group in groups]
    if entry["value"] is None or None in most:
        return entry if entry["value"] is None else missing("not run: the most frequent answer is not recorded")
    level = sum(most) / len(most)
    return {
        **entry,
        **{k: entry[k] - level for k in ("value", "low", "high") if entry[k] is not None},
        "unit": "points",
    }


def best(points: Points) -> Value:
    """The best accuracy of any point and epoch at the first seed, on the split that is reported: as the paper prints it."""
    runs = [group[0] for group in points.values() if group]
    gone = absent(runs, runs)
    found = [score for run in runs for _, score in accuracies(run)]
    return gone or {"value": max(found), "n": 1, "unit": "%"}


def gain(found: dict[tuple[str, str], Points], subject: str, baseline: str, what: str = "accuracy") -> Value:
    """Subject minus baseline at the last epoch: the mean over tasks at equal seed, then over seeds, as an entry.

    what: "accuracy" (points) or "choice_loss" (nat per question). The interval has the error of the seeds and of the
    questions, these in pairs where runs kept what each question cost.
    """
    tasks = [task for task, name in found if name == subject and (task, baseline) in found]
    ours, theirs = ([first(found[task, name]) for task in tasks] for name in (subject, baseline))
    gone = absent(flat(ours), flat(theirs))
    if gone:
        return gone
    over = mean_by_seed(ours, what), mean_by_seed(theirs, what)
    seeds = common_seeds([*ours, *theirs])
    if what == "choice_loss" and None in {run.final(what) for run in flat([*ours, *theirs])}:
        return missing("not run: these records are older than this loss")
    found_value = estimated(estimate([over[0](seed) - over[1](seed) for seed in seeds]), UNITS[what])
    error = same_questions.error(ours, theirs, what)
    if error is None:
        error = sampling(ours, theirs) if what == "accuracy" else 0.0
    return widened(found_value, error)


def average(found: dict[tuple[str, str], Points], name: str) -> Value:
    """Mean over the tasks of this method, then over seeds, as an entry; see among_questions for a single seed."""
    groups = [first(points) for (_, other), points in found.items() if other == name]
    gone = absent(flat(groups), flat(groups))
    if gone:
        return gone
    entry = percent([mean_by_seed(groups)(seed) for seed in common_seeds(groups)], sampling(groups))
    return among_questions(entry, groups)


def flat(groups: list[list[Run]]) -> list[Run]:
    """All runs of several groups."""
    return [run for group in groups for run in group]


def common_seeds(groups: list[list[Run]]) -> list[int]:
    """Seeds that every group has; what takes no step has no randomness and fits any seed."""
    random = [{run.seed for run in group} for group in groups if group[0].config["train"]["steps"]]
    return sorted(set.intersection(*random)) if random else [groups[0][0].seed]


def mean_by_seed(groups: list[list[Run]], what: str = "accuracy"):
    """A function seed -> mean over the groups at that seed."""

    def at(group: list[Run], seed: int) -> float:
        if not group[0].config["train"]["steps"]:
            return group[0].final(what)
        return next(run.final(what) for run in group if run.seed == seed)

    return lambda seed: sum(at(group, seed) for group in groups) / len(groups)


def beside(runs: list[Run], what: str) -> Value:
    """Mean over seeds of "auc" or "choice_loss" with the error of seeds and questions, as an entry."""
    gone = absent(runs, runs)
    if gone:
        return gone
    numbers = [run.final(what) for run in runs]
    if None in numbers:
        return missing("no number: all questions have the same answer" if what == "auc" else "not run: older records")
    error = same_questions.auc_error(runs) if what == "auc" else same_questions.error([runs], [], what)
    return widened(estimated(estimate(numbers), "" if what == "auc" else UNITS[what]), error or 0.0)
