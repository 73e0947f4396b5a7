"""Fine-tuned models on the same questions: how much of a mean, or of a difference, is due to which questions were asked.

Runs keep what each answer to each question costs (answer_scores.Costs). Two methods are compared question by question, so what
makes a question hard for both leaves the difference. Seeds err on their own, and all of them on the same questions: an
interval has both errors (stats.wider).
"""

import math

import numpy as np

from lowmem.finetuning import answer_scores
from lowmem.reporting.runs import Run

DRAWS = 400  # of the bootstrap over questions that gives the error of an AUC


def costs(run: Run) -> answer_scores.Costs | None:
    """What a run kept beside its record; None where it kept nothing."""
    found = run.arrays()
    return answer_scores.Costs(found["nats"], found["tokens"], found["labels"]) if "nats" in found else None


def outcomes(run: Run, what: str) -> np.ndarray | None:
    """Of each question, (Q,): "accuracy" 100 where it was answered rightly, else 0; "choice_loss" its loss in nats."""
    found = costs(run)
    if found is None:
        return None
    right = (np.arange(len(found.labels)), found.labels)
    if what == "choice_loss":
        likely = -found.nats.astype(np.float64)
        return np.logaddexp.reduce(likely, axis=1) - likely[right]
    ranked = found.nats if run.config["measure"].get("score", "sum") == "sum" else found.nats / found.tokens
    return 100.0 * (ranked.argmin(axis=1) == found.labels)


def over_seeds(runs: list[Run], what: str) -> np.ndarray | None:
    """Mean over seeds of each question's outcome, (Q,); None unless all runs kept theirs for the same questions."""
    found = [outcomes(run, what) for run in runs]
    if not found or any(one is None or len(one) != len(found[0]) for one in found):
        return None
    return np.mean(found, axis=0)


def error(ours: list[list[Run]], theirs: list[list[Run]], what: str) -> float | None:
    """Standard error, due to the questions, of the mean over tasks of ours minus theirs (a group of seeds for each task).

    theirs: [] for a mean of ours alone. None where something was not kept, or was asked differently.
    """
    variance = 0.0
    for k, group in enumerate(ours):
        mine, other = over_seeds(group, what), over_seeds(theirs[k], what) if theirs else 0.0
        if mine is None or other is None or (theirs and len(mine) != len(other)) or len(mine) < 2:
            return None
        variance += (mine - other).var(ddof=1) / len(mine) / len(ours) ** 2
    return math.sqrt(variance)


def auc_error(runs: list[Run]) -> float | None:
    """Standard error of the mean AUC over seeds that is due to the questions, by a bootstrap over them."""
    found = [costs(run) for run in runs]
    if not found or None in found or any(one.nats.shape != found[0].nats.shape for one in found):
        return None
    second, draw = found[0].labels == 1, np.random.default_rng(0)
    leaning = [one.nats[:, 0] - one.nats[:, 1] for one in found]
    means = []
    for _ in range(DRAWS):
        chosen = draw.integers(0, len(second), len(second))
        if 0 < second[chosen].sum() < len(second):
            means.append(np.mean([answer_scores.auc(one[chosen], second[chosen]) for one in leaning]))
    return float(np.std(means, ddof=1)) if len(means) > 1 else None
