"""What others measured about Adam-mini and LOMO, beside our verdicts: it decides none of them.

The table is data/published/independent.yaml as it stands; the page shows each entry also beside the claims it bears on.
"""

from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import exact

EXHIBIT = {
    "id": "extra_independent",
    "paper": "extra",
    "label": "Extra",
    "order": 5,
    "kind": "table",
    "title": "What others measured",
    "experiments": [],
    "published": "independent",
}

COLUMNS = ["who", "at which scale", "what", "AdamW", "Adam-mini", "Adam-mini − AdamW", "found", "known against it"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """A row for each number of others, and one for what has none; the first of an entry says whose it is and what it means.
    Values: wen.mean_gap, wen.cells_behind."""
    shown = ExhibitResult(
        caption="Runs of other people, 125M to 8B parameters, one seed each where it is known. Losses in nat per token. They "
        "stand beside our verdicts and decide none.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            f"Nothing was found on: {', '.join(published['none_found'])}.",
            *(f"{entry['who']}: {entry['address']} ({entry['checked']})." for entry in published["entries"]),
        ],
    )
    for entry in published["entries"]:
        about = [entry["who"], f"{entry['scale']}. Seeds: {entry['seeds']}. Tuning: {entry['tuning']}."]
        for k, value in enumerate(entry["values"] or [None]):
            first = k == 0
            told = [entry["found"], entry["against"]] if first else ["", ""]
            shown.rows.append([*(about if first else ["", ""]), *numbers(value), *told])
    gaps = [v["adam_mini"] - v["adamw"] for v in cells(published)]
    shown.values["wen.mean_gap"] = {"value": sum(gaps) / len(gaps), "n": 1, "unit": "nat per token"}
    shown.values["wen.cells_behind"] = exact(sum(gap > 0 for gap in gaps), f"of {len(gaps)} cells")
    return shown


def cells(published: dict) -> list[dict]:
    """The twelve pairs of Wen et al."""
    return next(entry["values"] for entry in published["entries"] if entry["id"] == "wen_2025")


def numbers(value: dict | None) -> list[str]:
    """What, AdamW, Adam-mini and their difference; per cent where the unit is a speed."""
    if value is None:
        return ["no table of numbers", "", "", ""]
    ours, theirs = value["adam_mini"], value["adamw"]
    speed = value["unit"] == "token/s"
    gap = f"{100 * (ours / theirs - 1):+.1f} %" if speed else f"{ours - theirs:+.4f}"
    what = ", ".join(part for part in (value["what"], value.get("at")) if part)
    return [what, *(f"{number:,}" if speed else f"{number:.4f}" for number in (theirs, ours)), gap]
