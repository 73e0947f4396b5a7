"""What the pilot of SuperGLUE says of each task: can AdamW teach a model of this size anything about it?"""

import math
from collections.abc import Iterable

from lowmem.reporting.numbers.superglue import LIVE, TASKS, asked, pilot_runs
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import Value, exact, missing

ERRORS = 2  # standard errors above the most frequent answer


def by_task(runs: Iterable[Run]) -> dict[str, dict[str, Run]]:
    """{task, with _3 behind it where it was trained for three epochs: {"zero" or rate: run}}, in the order of the file."""
    found: dict[str, dict[str, Run]] = {}
    for run in runs:
        found.setdefault(run.axes["task"], {})[run.axes["lr"]] = run
    return found


def best(rates: dict[str, Run]) -> Run | None:
    """The finished run with the lowest loss among the answers, which is what chooses a rate; None without any."""
    done = [run for rate, run in rates.items() if rate != "zero" and run.status == "done"]
    return min(done, key=lambda run: run.final("choice_loss"), default=None)


def threshold(run: Run) -> float:
    """Accuracy in percent that counts as learned: ERRORS standard errors above the most frequent answer."""
    share = run.final("most") / 100
    return 100 * (share + ERRORS * math.sqrt(share * (1 - share) / run.final("questions")))


def chance_loss(run: Run) -> float:
    """Nats per question of a model that knows how frequent each of two answers is, and nothing else."""
    share = run.final("most") / 100
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def learned(rates: dict[str, Run]) -> bool | None:
    """Whether a task can be learned, by the rule in the experiment's file; None where nothing was run."""
    run = best(rates)
    return None if run is None else run.final("accuracy") > threshold(run)


def real(runs: Iterable[Run]) -> dict[str, list[dict[str, Run]]]:
    """{task of the table: its finished trainings by rate, for one epoch and for three}; no stand-ins."""
    found: dict[str, list[dict[str, Run]]] = {}
    for rates in by_task(runs).values():
        task, data = asked(next(iter(rates.values())))[0], next(iter(rates.values())).config["data"]
        if best(rates) and data["dataset"] != "wordnet" and data.get("part") in (None, task):
            found.setdefault(task, []).append(rates)
    return found


def verdicts(runs: Iterable[Run]) -> dict[str, bool]:
    """{task of the table: learned} of the tasks that the pilot ran: by one epoch or by three."""
    return {task: any(map(learned, trainings)) for task, trainings in real(runs).items()}


def nearest(runs: Iterable[Run], task: str) -> Run | None:
    """The run of the pilot that decides about a task: of one epoch or three, the one that is further above what counts."""
    chosen = [best(rates) for rates in real(runs).get(task, [])]
    return max(chosen, key=lambda run: run.final("accuracy") - threshold(run), default=None)


def margin(runs: Iterable[Run], task: str) -> Value:
    """By how much AdamW is above the accuracy that counts as learned (points): above 0 where it has learned, and only there."""
    run = nearest(runs, task)
    if run is None:
        return missing(f"not run: the pilot has no record of {TASKS[task]}")
    return exact(run.final("accuracy") - threshold(run), "points")


def premise(runs: Runs, task: str, tier: str) -> Value:
    """The margin, for the gate of a claim about a task: of tiers that train the pilot's model on as little as the pilot."""
    if tier in (*LIVE, "overnight"):
        return margin(pilot_runs(runs), task)
    return missing("not run: the pilot covers shorter runs than this tier's")


def trained(long: Iterable[Run]) -> list[str]:
    """Tasks on which a tier trains methods, in the order of the table; the others are only asked without training."""
    planned = {task for run in long if run.config["train"]["steps"] for task in [asked(run)[0]]}
    return [task for task in TASKS if task in planned]


def in_place_of(task: str, tasks: list[str], pilot: Iterable[Run]) -> str:
    """Why a figure shows `tasks` where the paper shows `task`, for a caption; empty where it shows that task too.

    'RTE in place of BoolQ, which a model of this size did not learn in 1,000 examples: 64.5 % where 66.7 % counts as learned'
    """
    if task in tasks or not tasks:
        return ""
    run, shown = nearest(pilot, task), f"{' and '.join(TASKS[name] for name in tasks)} in place of {TASKS[task]}"
    if run is None or learned({"": run}):
        return f"{shown}, on which this tier trains nothing"
    return (
        f"{shown}, which a model of this size did not learn in {run.config['measure']['train_examples']:,} examples: "
        f"{run.final('accuracy'):.1f} % where {threshold(run):.1f} % counts as learned"
    )
