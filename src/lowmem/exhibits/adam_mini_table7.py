"""Table 7 of Adam-mini: quality of generated images. The paper prints FID and Inception score, both of Inception features.

Ours come from a classifier that we train on the same data, so they carry other names and no common scale with the paper's;
only which optimizer is ahead can be compared.
"""

from lowmem.reporting import display
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import absent, mean, ratio
from lowmem.reporting.numbers.quarters import data_of, of
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, unfinished
from lowmem.reporting.values import Value, missing, text

EXHIBIT = {
    "id": "adam_mini_table7",
    "paper": "adam_mini",
    "label": "Table 7",
    "order": 17,
    "kind": "table",
    "title": "Quality of generated pictures",
    "experiments": ["dit", "ddpm"],
    "published": "adam_mini.table7",
}

MODELS = {"dit": "DiT", "dcae": "DiT on DC-AE latents", "ddpm": "DDPM (ours)"}
PUBLISHED = {"dit": "DiT-XL-2", "dcae": "DC-AE-Diffusion"}
UNMEASURED = "not run: pictures without classes, so without a classifier"
COLUMNS = ["model", "optimizer", "Fréchet distance, own classifier", "the same of training pictures"]
COLUMNS += ["class score, own classifier", "FID", "Inception score", "seeds"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: <model>.distance and <model>.score, Adam-mini over AdamW at equal seed, for dit, dcae, ddpm."""
    shown = ExhibitResult(
        caption=scale.counted(runs, "training pictures")
        + f"Data: {data_of(runs)}. Distance (lower is better) between samples and test pictures in features of a small "
        "classifier of ours; beside it that of as many training pictures, which no model should beat. Score (higher is "
        "better): how sure the classifier is of single samples and how varied they are. Neither is FID or Inception score, "
        "which only the paper's rows have.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "Own classifier in place of Inception; far fewer samples than the 50,000 that are usual.",
            "Sampling in few steps without guidance; weights are not averaged over time.",
        ],
    )
    for name, label in MODELS.items():
        groups = of(runs, name)
        for optimizer, found in groups.items():
            cells = [text(measured(found, key), digits=2) for key in ("frechet", "frechet_floor", "class_score")]
            shown.rows.append([label, display.name(optimizer), *cells, "", "", len(found)])
        for key, column in (("distance", "frechet"), ("score", "class_score")):
            shown.values[f"{name}.{key}"] = compared(groups.get("adam_mini", []), groups.get("adamw", []), column)
        publish(shown, published, name)
    return shown


def measured(runs: list[Run], key: str) -> Value:
    """Mean of a number over seeds, as an entry; images without classes have no classifier to measure them."""
    if runs and not unfinished(runs) and any(run.final(key) is None for run in runs):
        return missing(UNMEASURED)
    return mean(runs, lambda run: run.final(key))


def compared(subject: list[Run], baseline: list[Run], key: str) -> Value:
    """Subject over baseline at equal seed, geometric mean, as an entry."""
    gone = absent(subject, baseline)
    ours, theirs = ({run.seed: run.final(key) for run in group} for group in (subject, baseline))
    if not gone and None in {*ours.values(), *theirs.values()}:
        return missing(UNMEASURED)
    return gone or ratio(ours, theirs)


def publish(shown: ExhibitResult, published: dict, name: str) -> None:
    """The paper's row of each optimizer."""
    for optimizer in ("AdamW", "Adam-mini") if name in PUBLISHED else ():
        found = {what: printed(published, what, model=PUBLISHED[name], optimizer=optimizer) for what in ("FID", "IS")}
        for what, value in found.items():
            shown.published += published_entry(f"{PUBLISHED[name]}, {optimizer}, {what}", value)
        cells = ["" if value is None else f"{value['value']:.2f}" for value in found.values()]
        shown.rows.append([f"{PUBLISHED[name]} (paper)", optimizer, "", "", "", *cells, 1])
