"""Table 7 of Adam-mini: quality of generated pictures. The paper prints FID and Inception score, both of Inception features.

Ours come from a classifier that we train on the same data, so they carry other names and no common scale with the paper's;
only which optimizer is ahead can be compared.
"""

from lowmem import plots
from lowmem.curves import absent, mean, missing, ratio, text
from lowmem.exhibit import Run, Runs, Shown, mark, printed
from lowmem.quarters import data_of, of

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
COLUMNS = ["model", "optimizer", "Fréchet distance, own classifier", "the same of training pictures"]
COLUMNS += ["class score, own classifier", "FID", "Inception score", "seeds"]


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Values: <model>.distance and <model>.score, Adam-mini over AdamW at equal seed, for dit, dcae, ddpm."""
    shown = Shown(
        caption=f"Data: {data_of(runs)}. Distance (lower is better) between samples and test pictures in features of a small "
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
            shown.runs_used += [run.id for run in found if run.status == "done"]
            cells = [
                text(mean(found, lambda run, key=key: run.final(key)), digits=2) for key in ("frechet", "frechet_floor")
            ]
            score = text(mean(found, lambda run: run.final("class_score")), digits=2)
            shown.rows.append([label, plots.name(optimizer), *cells, score, "", "", len(found)])
        for key, column in (("distance", "frechet"), ("score", "class_score")):
            shown.values[f"{name}.{key}"] = compared(groups.get("adam_mini", []), groups.get("adamw", []), column)
        publish(shown, published, name)
    return shown


def compared(subject: list[Run], baseline: list[Run], key: str) -> dict:
    """Subject over baseline at equal seed, geometric mean, as an entry."""
    ours, theirs = ({run.seed: run.final(key) for run in group} for group in (subject, baseline))
    if not absent(subject, baseline) and None in {*ours.values(), *theirs.values()}:
        return missing("not run: the records hold no samples' quality")
    return absent(subject, baseline) or ratio(ours, theirs)


def publish(shown: Shown, published: dict, name: str) -> None:
    """The paper's row of each optimizer."""
    for optimizer in ("AdamW", "Adam-mini") if name in PUBLISHED else ():
        found = {what: printed(published, what, model=PUBLISHED[name], optimizer=optimizer) for what in ("FID", "IS")}
        for what, value in found.items():
            shown.published += mark(f"{PUBLISHED[name]}, {optimizer}, {what}", value)
        cells = ["" if value is None else f"{value['value']:.2f}" for value in found.values()]
        shown.rows.append([f"{PUBLISHED[name]} (paper)", optimizer, "", "", "", *cells, 1])
