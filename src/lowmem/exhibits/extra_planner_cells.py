"""The planner beside training steps that other people measured: memory, speed, and what is not known of each."""

from lowmem.memory import calibration, training_cells
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import exact

EXHIBIT = {
    "id": "extra_planner_cells",
    "paper": "extra",
    "label": "Planner and others",
    "order": 21,
    "kind": "table",
    "topic": "cost",
    "title": "Predicted against what other people measured",
    "experiments": [],
    "published": "training_cells_predicted",
}

COLUMNS = [
    "cell",
    "model",
    "optimizer",
    "GPUs",
    "measured GB",
    "predicted GB",
    "error",
    "tokens/s: measured / predicted",
    "kind",
]
COLUMNS += ["where"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """A row per cell. Values: {held_out, tuning, known}.{cells, median_percent, worst_percent}, hit rates of the intervals."""
    shown = ExhibitResult(
        caption="Peak memory of PyTorch's allocator as other people measured it, GB of 1e9 bytes, and as the planner predicts "
        "it. Held out: cells on which no constant was set, by a rule on their ids that was fixed before any prediction. "
        "Setting unknown: the range over what the source does not say.",
        columns=COLUMNS,
        rows=[row(cell, published["sources"]) for cell in published["cells"]],
        deviations=[f"{source['who']}: {source['read']}." for source in published["sources"].values()],
    )
    for name, found in training_cells.summary(published).items():
        key = name.replace(" ", "_")
        shown.values[f"{key}.cells"] = exact(found["cells"])
        shown.values[f"{key}.median_percent"] = exact(found["median"], "%")
        shown.values[f"{key}.worst_percent"] = exact(found["worst"], "%")
    for key, factor, ends in (
        ("speed", training_cells.speed_factor, calibration.SPEED),
        ("card", training_cells.card_factor, calibration.CARD),
    ):
        inside, count = training_cells.hits(published, factor, ends[0], ends[2])
        shown.values[f"{key}.hits_percent"] = exact(100 * inside / count, "%")
    return shown


def row(cell: dict, sources: dict) -> list[str]:
    """One cell as text."""
    kind, predicted = training_cells.kind(cell), cell["predicted"]
    measured = training_cells.measured_bytes(cell) / 1e9
    peak, error = predicted.get("reason", ""), ""
    if kind == "setting unknown":
        peak = " to ".join(f"{x / 1e9:.2f}" for x in predicted["peak_bytes"])
        kind += f": {', '.join(f'{key} {min(ends)} to {max(ends)}' for key, ends in cell['unknown'].items())}"
    elif kind != "not modelled":
        peak, error = f"{predicted['peak_bytes'] / 1e9:.2f}", f"{training_cells.error(cell):+.1f} %"
    factor = None if isinstance(predicted.get("peak_bytes"), list) else training_cells.speed_factor(cell)
    speed = "" if factor is None else f"{factor:.2f}"
    where = sources[cell["source"]]["address"]
    return [
        cell["id"],
        cell["model"],
        cell["optimizer"],
        str(cell.get("gpus", 1)),
        f"{measured:.2f}",
        peak,
        error,
        speed,
        kind,
        where,
    ]
