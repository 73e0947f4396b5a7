"""What the pilot of SuperGLUE says of each task: can AdamW teach a model of this size anything about it?"""

import math
from collections.abc import Iterable

from lowmem.drawing.fine_tuning import asked
from lowmem.exhibit import Run

ERRORS = 2  # standard errors above the most frequent answer


def by_task(runs: Iterable[Run]) -> dict[str, dict[str, Run]]:
    """{task, with _3 behind it where it was trained for three epochs: {"zero" or rate: run}}, in the order of the file."""
    found: dict[str, dict[str, Run]] = {}
    for run in runs:
        task, rate = run.variant.rsplit("-", 1)
        found.setdefault(task, {})[rate] = run
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


def verdicts(runs: Iterable[Run]) -> dict[str, bool]:
    """{task of the table: learned} of the tasks that the pilot ran: by one epoch or by three."""
    found: dict[str, bool] = {}
    for rates in by_task(runs).values():
        task, said = asked(next(iter(rates.values())))[0], learned(rates)
        data = next(iter(rates.values())).config["data"]
        if said is not None and data["dataset"] != "wordnet" and data.get("part") in (None, task):
            found[task] = found.get(task, False) or said
    return found
