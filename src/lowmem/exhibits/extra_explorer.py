"""Will it fit, and how fast: models, machines, precisions and batches by optimizer, as `lowmem plan` answers them.

The cells were computed once and are kept in data/records; each takes seconds, all of them most of an hour.
"""

from lowmem.memory.parts import PARTS
from lowmem.reporting import display
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.memory import GIB, shown
from lowmem.reporting.runs import Run, Runs, unfinished
from lowmem.reporting.values import exact, missing

EXHIBIT = {
    "id": "extra_explorer",
    "paper": "extra",
    "label": "Explorer",
    "order": 5,
    "kind": "table",
    "topic": "cost",
    "title": "Will it fit, and how fast?",
    "experiments": [],
    "published": None,
    "archived": ["laptop/explorer"],
}

MACHINES = {"rtx_4090": "1 x RTX 4090, 24 GB", "a100": "1 x A100, 80 GB"}
MACHINES |= {"8_rtx_3090": "8 x RTX 3090, 24 GB, ZeRO-3", "8_a100": "8 x A100, 80 GB, ZeRO-3"}
PRECISIONS = {"mixed": "fp32, products in bf16", "bf16": "bf16 throughout"}
BATCHES = {"one": "1", "largest": "the largest that fits"}
COLUMNS = ["optimizer", "model", "machine", "precision", "sequences per GPU", "fits", "batch", "peak GiB per GPU"]
COLUMNS += [*PARTS, "tokens/s"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: cells (how many are known)."""
    table = ExhibitResult(
        caption="Training steps on 2048 tokens per sequence, every layer recomputed in backward. Choose model, machine, "
        "precision and batch; the parts are what is alive at the peak, GiB per GPU. Simulated: no GPU was used.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "Peaks come from tracing the real step, speeds from a roofline model that knows no delays of Python or of the "
            "allocator: they tend to be too high. Planner accuracy and Table 2 of Adam-mini say by how much.",
            "`lowmem plan MODEL --gpu …` answers for any model and any of 18 GPUs; 1 GiB of each is set aside for CUDA.",
            "bf16 throughout takes the least memory, but small updates are lost to rounding: see Rounding.",
        ],
        filters=["model", "machine", "precision", "sequences per GPU"],
        bars=["peak GiB per GPU", "tokens/s"],
    )
    for run in runs.archived:
        table.rows.append(row(run))
    done = [run for run in runs.archived if run.status == "done"]
    if not done:
        table.rows, table.filters = [], []
        table.rows.append([unfinished(runs.archived) or "not run: no record", *[""] * (len(COLUMNS) - 1)])
    table.values["cells"] = exact(len(done), "cells") if done else missing(table.rows[0][0])
    return table


def row(run: Run) -> list[str]:
    """One cell: who, where, whether it fits, memory by component, speed."""
    at, optimizer = run.axes, run.axes["optimizer"]
    place = [at["model"].replace("_", "-"), MACHINES[at["machine"]], PRECISIONS[at["precision"]], BATCHES[at["batch"]]]
    if run.status != "done":
        return [display.name(optimizer), *place, run.reason, *[""] * (len(COLUMNS) - 6)]
    fits = run.final("fits")
    sizes = [sum(run.record["memory"].get(role, 0) for role in roles) / GIB for roles in PARTS.values()]
    speed = shown(run.final("tokens_per_s"), 0) if fits else ""
    cells = [str(run.final("batch") or 1), shown(run.final("peak_bytes") / GIB, 1), *(shown(x, 1) for x in sizes)]
    return [display.name(optimizer), *place, "yes" if fits else "no", *cells, speed]
