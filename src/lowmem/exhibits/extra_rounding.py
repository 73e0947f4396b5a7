"""How much of a LOMO step arrives in 16-bit weights: share of weights that change, with both kinds of rounding."""

from lowmem.analysis.stats import estimate
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import absent
from lowmem.reporting.runs import Run, Runs, by_axis
from lowmem.reporting.values import Value, estimated, missing, text

EXHIBIT = {
    "id": "extra_rounding",
    "paper": "extra",
    "label": "Rounding",
    "order": 40,
    "kind": "table",
    "title": "What 16-bit weights keep of a LOMO step",
    "experiments": ["rounding"],
    "published": None,
}

STORAGE = {
    "fp32": "fp32",
    "fp16": "fp16, to nearest",
    "fp16_stochastic": "fp16, stochastic",
    "bf16": "bf16, to nearest",
    "bf16_stochastic": "bf16, stochastic",
}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: changed.<storage> (percent of weights), kept.<storage> (that share over fp32's), accuracy.<storage>."""
    groups = by_axis(runs, "storage")
    shown = ExhibitResult(
        caption=scale.fine_tuned(runs)
        + "Share of all weights that differ after a step of LOMO at its published rate and clipping, mean over the steps "
        "and then over seeds; loss and accuracy after the last step. All weights compute in bf16; only their storage differs.",
        columns=["storage", "weights changed (%)", "of fp32's", "validation loss (nat)", "accuracy (%)"],
        rows=[],
        deviations=["In no paper. LOMO trains 16-bit weights without an fp32 copy."],
    )
    first = next(iter(runs), None)
    if first is not None:
        steps = first.config["train"]["steps"]
        shown.deviations.append(
            f"{steps} steps of {first.config['train']['batch_size']} questions"
            + (": enough for the share, not for what it does to accuracy." if steps < 50 else ".")
        )
    for name, words in STORAGE.items():
        group = groups.get(name, [])
        changed = percent(group, "changed", 100)
        shown.values[f"changed.{name}"] = changed
        shown.values[f"kept.{name}"] = kept(group, groups.get("fp32", []))
        shown.values[f"accuracy.{name}"] = percent(group, "accuracy", 1)
        share = "" if name == "fp32" else text(shown.values[f"kept.{name}"], digits=4)
        loss = percent(group, "val_loss", 1)
        scores = [text(loss, digits=3), text(shown.values[f"accuracy.{name}"], digits=1)]
        shown.rows.append([words, text(changed, digits=3), share, *scores])
    return shown


def percent(group: list[Run], key: str, factor: float) -> Value:
    """Mean over seeds of a final number, as an entry."""
    gone = absent(group, group)
    return gone or estimated(estimate([factor * run.final(key) for run in group]), "%")


def kept(group: list[Run], full: list[Run]) -> Value:
    """Share of changed weights over that with fp32 storage at equal seed."""
    if gone := absent(group, full):
        return gone
    theirs = {run.seed: run.final("changed") for run in full}
    if not all(theirs.get(run.seed) for run in group):
        return missing("no number: no weight changed with fp32 storage")
    return estimated(estimate([run.final("changed") / theirs[run.seed] for run in group]), "of fp32's")
