"""Accuracy, AUC and losses that follow from what each answer to each question costs (likelihoods.py); NumPy alone."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Costs:
    """nats (Q, K): of the tokens of each option in sum, end token included; tokens (Q, K): how many; labels (Q,)."""

    nats: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray


def scores(found: Costs, rule: str) -> dict[str, float]:
    """What follows from the costs, answers ranked by their "sum" or "mean" over tokens.

    val_loss: nats per token of the right answers. choice_loss: nats per question, of the right answer among those offered;
    always saying how frequent each is costs their entropy. accuracy, first (how often the first answer was chosen) and
    most (accuracy of always giving the most frequent answer): percent. auc: of two answers, how often a question whose
    second one is right leans more to the second than a question whose first one is right (0.5: no idea); absent where
    all have the same answer. questions: how many.
    """
    right = (np.arange(len(found.labels)), found.labels)
    ranked = found.nats if rule == "sum" else found.nats / found.tokens
    chosen, counts = ranked.argmin(axis=1), np.bincount(found.labels)
    likely = -found.nats.astype(np.float64)
    total = np.logaddexp.reduce(likely, axis=1)
    made = {
        "val_loss": found.nats[right].sum() / found.tokens[right].sum(),
        "choice_loss": (total - likely[right]).mean(),
        "accuracy": 100 * (chosen == found.labels).mean(),
        "first": 100 * (chosen == 0).mean(),
        "most": 100 * counts.max() / counts.sum(),
    }
    if ranked.shape[1] == 2 and counts.min() > 0 and len(counts) == 2:
        made["auc"] = auc(ranked[:, 0] - ranked[:, 1], found.labels == 1)
    return {**{key: float(value) for key, value in made.items()}, "questions": len(found.labels)}


def auc(leaning: np.ndarray, second: np.ndarray) -> float:
    """Area under the ROC curve: how often one of `second` leans more than one of the others; a tie counts half."""
    others = np.sort(leaning[~second])
    below, not_above = (np.searchsorted(others, leaning[second], side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(others)))
