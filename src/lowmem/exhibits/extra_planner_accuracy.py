"""How well the accountant predicts: its peak beside the allocator's, for every training step this machine could run."""

import statistics

from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.memory import shown
from lowmem.reporting.runs import Runs, unfinished
from lowmem.reporting.values import exact, missing, value_or_reason

EXHIBIT = {
    "id": "extra_planner_accuracy",
    "paper": "extra",
    "label": "Planner accuracy",
    "order": 20,
    "kind": "table",
    "topic": "cost",
    "title": "Predicted against measured peak memory",
    "experiments": ["planner_accuracy"],
    "published": None,
}

COLUMNS = ["model", "optimizer", "batch", "measured MB", "predicted MB", "error", "resident MB", "peak at", "layers"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """A row per cell; the claims read the median and the worst error."""
    table = ExhibitResult(
        caption=scale.model(runs)
        + "Peak of PyTorch's allocator during one training step (measured: events of torch.profiler on a CPU, "
        "torch.cuda's statistics on a GPU) and as predicted from shallow models on fake tensors. Resident: what the "
        "process grew by, which also holds caches and libraries.",
        columns=COLUMNS,
        rows=[],
    )
    errors = []
    for run in runs:
        model, optimizer, batch = (run.axes[axis] for axis in ("model", "optimizer", "batch"))
        if run.status != "done":
            table.rows.append([model, optimizer, batch, run.reason, *[""] * 5])
            continue
        errors.append(abs(run.final("error_percent")))
        resident = run.final("resident_bytes")
        traced = "+".join(map(str, run.final("layers_traced")))
        numbers = [shown(run.final(key) / 1e6) for key in ("measured_bytes", "predicted_bytes")]
        error = f"{run.final('error_percent'):+.3f} %"
        memory = "" if resident is None else shown(resident / 1e6, 0)
        row = [model, optimizer, batch, *numbers, error, memory, run.final("phase")]
        table.rows.append([*row, f"{run.final('layers')} from {traced}"])
    reason = unfinished(runs)
    for key, pick in (("error.median_percent", statistics.median), ("error.worst_percent", max)):
        table.values[key] = value_or_reason(None if reason else pick(errors), "%", reason)
    table.values["cells"] = missing(reason) if reason else exact(len(errors))
    return table
