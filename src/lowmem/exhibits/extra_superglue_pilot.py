"""Ours: which tasks of SuperGLUE a model of 135 million parameters can learn; decides where accuracy is judged at all."""

from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import learnable, scale
from lowmem.reporting.numbers.superglue import asked
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import exact

EXHIBIT = {
    "id": "extra_superglue_pilot",
    "paper": "extra",
    "label": "Extra",
    "order": 52,
    "kind": "table",
    "title": "What 135 million parameters can learn of SuperGLUE",
    "experiments": [],
    "also": {"overnight": ["superglue_pilot"]},
    "archived": ["overnight/superglue_pilot"],
    "published": None,
}
COLUMNS = ["data", "training", "accuracy (%)", "needed (%)", "most frequent (%)", "AUC", "loss among answers (nat)"]
COLUMNS += ["loss by chance", "questions", "core minutes", "learned"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: <task>.learned (1 or 0, with _3 in the name for three epochs)."""
    found = list(runs) or runs.archived
    shown = ExhibitResult(
        caption=scale.fine_tuned(runs)
        + "AdamW on all weights at three rates, one seed; accuracy, AUC and loss on questions of the "
        "training file that nothing was trained on. Needed: two standard errors above always giving the most frequent answer. "
        "A task is learned when the rate with the lowest loss is above that. Loss by chance: of a model that knows how "
        "frequent the answers are and nothing else; AUC by chance: 0.5.",
        columns=COLUMNS,
        rows=[],
        deviations=["In nobody's paper. The rule stood in the experiment's file before these runs."],
    )
    for task, rates in learnable.by_task(found).items():
        chosen = learnable.best(rates)
        for rate, run in rates.items():
            learned = learnable.learned(rates) if run is chosen else None
            shown.rows.append(row(run, rate, {True: "yes", False: "no", None: ""}[learned]))
        if chosen is not None:
            shown.values[f"{task}.learned"] = exact(int(learnable.learned(rates)))
    return shown


def row(run: Run, rate: str, learned: str) -> list:
    """One run: what was asked, how it was trained, and its numbers or why there are none."""
    train, name = run.config["train"], asked(run)[1]
    epochs = round(train["steps"] / (run.config["train"]["eval_every"] or 1))
    times = "once" if epochs == 1 else f"{epochs} times"
    training = "none" if rate == "zero" else f"{run.config['optimizer']['lr']:g}, {times}"
    if run.status != "done":
        return [name, training, run.reason, *[""] * (len(COLUMNS) - 3)]
    seconds = (run.record.get("throughput") or {}).get("run_s")
    auc = run.final("auc")
    return [
        name,
        training,
        f"{run.final('accuracy'):.1f}",
        f"{learnable.threshold(run):.1f}",
        f"{run.final('most'):.1f}",
        "" if auc is None else f"{auc:.3f}",
        f"{run.final('choice_loss'):.3f}",
        f"{learnable.chance_loss(run):.3f}",
        run.final("questions"),
        "" if seconds is None else f"{seconds / 60:.1f}",
        learned,
    ]
