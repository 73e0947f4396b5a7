"""Table 2 of LOMO: memory and speed per GPU on RTX 3090 cards, simulated; the first row fits the link, no other does."""

from lowmem.memory.hardware import OUTSIDE
from lowmem.reporting import display
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.memory import SIMULATED, gib, rate, shown
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, unfinished
from lowmem.reporting.values import value_or_reason

EXHIBIT = {
    "id": "lomo_table2",
    "paper": "lomo",
    "label": "Table 2",
    "order": 40,
    "kind": "table",
    "topic": "cost",
    "title": "Memory and throughput on RTX 3090 cards",
    "experiments": ["simulated"],
    "published": "lomo.table2",
}

ROWS = [  # size, optimizer, GPUs
    ("7b", "adamw", 8),
    ("7b", "sgd", 8),
    ("7b", "lomo", 1),
    ("13b", "adamw", 8),
    ("13b", "sgd", 8),
    ("13b", "lomo", 2),
    ("30b", "sgd", 8),
    ("30b", "lomo", 4),
    ("65b", "lomo", 8),
]
COLUMNS = ["model", "optimizer", "GPUs", "memory (GB per GPU)", "printed memory", "tokens/s per GPU"]
COLUMNS += ["printed tokens/s", "difference"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """A row per printed one, and one for LOMO's two passes, which the paper may have used or not."""
    table = ExhibitResult(
        caption=f"Per-GPU memory (GiB; the paper's GB are GiB) with {OUTSIDE:g} GiB outside PyTorch's allocator, and "
        f"tokens per second and GPU. {SIMULATED}",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "The first row fits the bandwidth between the cards; every other speed, and all memory, is a prediction "
            "(hardware.py: rtx-3090-x8).",
            "Whether checkpointing and the norm pass were on is not stated: checkpointing is on here, as in the official "
            "scripts, and LOMO is shown with one and with two passes.",
            "Ours is fully_shard, which gathers weights and reduces gradients a layer at a time; the authors' ZeRO-3 does "
            "so parameter by parameter, which needs less beside the weights, most of all for the large models.",
            "The printed memory may be an average over GPUs or over time (the authors' answers differ); ours is the peak.",
            "11 times compares one GPU that does not communicate with eight that do. Per machine the printed ratio is 1.43.",
        ],
    )
    wrong, reason = 0, None
    for size, optimizer, gpus in ROWS:
        run = runs.one(cell=f"l2.{size}.{optimizer}.{gpus}")
        memory = printed(published, "memory_gb", params=size.upper(), optimizer=display.name(optimizer), gpus=gpus)
        speed = printed(published, "tgs", params=size.upper(), optimizer=display.name(optimizer), gpus=gpus)
        table.published += published_entry(f"{size.upper()}, {display.name(optimizer)}, GPUs {gpus}: memory", memory)
        table.published += published_entry(
            f"{size.upper()}, {display.name(optimizer)}, GPUs {gpus}: tokens/s per GPU", speed
        )
        add(table, run, size, display.name(optimizer), gpus, memory, speed)
        if run.status != "done":
            reason = reason or run.reason
        elif memory is not None:
            wrong += run.final("fits") != (memory["value"] != "OOM")
        if optimizer == "lomo":
            name = f"l2.{size}.lomo_two_passes.{gpus}"
            add(table, runs.one(cell=name), size, "LOMO, two passes", gpus, memory, speed)
    table.values["rows_wrong"] = value_or_reason(wrong, "rows", reason)
    ratios(table, runs)
    return table


def add(
    table: ExhibitResult, run: Run, size: str, name: str, gpus: int, memory: dict | None, speed: dict | None
) -> None:
    """One row with its value `<cell>.tgs`."""
    theirs = "" if memory is None else str(memory["value"])
    printed_speed = "" if speed is None else f"{speed['value']:g}"
    cells = [size.upper(), name, gpus]
    per_gpu, reason = rate_per_gpu(run, gpus)
    table.values[f"{run.axes['cell']}.tgs"] = value_or_reason(per_gpu, "token/s per GPU", reason)
    if run.status != "done":
        table.rows.append([*cells, run.reason, theirs, "", printed_speed, ""])
        return
    if not run.final("fits"):
        need = f"out of memory ({gib(run) + OUTSIDE:.1f})"
        table.rows.append([*cells, need, theirs, "", printed_speed, ""])
        return
    difference = "" if speed is None else f"{100 * (per_gpu / speed['value'] - 1):+.0f} %"
    if run.axes["cell"] == "l2.7b.adamw.8":
        difference = "fitted"
    table.rows.append([*cells, shown(gib(run) + OUTSIDE), theirs, shown(per_gpu), printed_speed, difference])


def rate_per_gpu(run: Run, gpus: int) -> tuple[float | None, str | None]:
    """cells.rate, divided by the GPUs."""
    found, reason = rate(run)
    return (None if found is None else found / gpus), reason


def ratios(table: ExhibitResult, runs: Runs) -> None:
    """The headline ratios; None where a run is missing or does not fit."""
    pairs = {
        "speedup.7b": ("l2.7b.lomo.1", 1, "l2.7b.adamw.8", 8),
        "speedup.7b_two_passes": ("l2.7b.lomo_two_passes.1", 1, "l2.7b.adamw.8", 8),
        "speedup.7b_over_sgd": ("l2.7b.lomo.1", 1, "l2.7b.sgd.8", 8),
        "speedup.13b_over_sgd": ("l2.13b.lomo.2", 2, "l2.13b.sgd.8", 8),
    }
    for key, (ours, mine, base, others) in pairs.items():
        (a, why_not), (b, why_not_b) = (
            rate_per_gpu(runs.one(cell=ours), mine),
            rate_per_gpu(runs.one(cell=base), others),
        )
        reason = unfinished([runs.one(cell=ours), runs.one(cell=base)]) or why_not or why_not_b
        table.values[key] = value_or_reason(None if reason else a / b, "x", reason)
    a, b = runs.one(cell="l2.7b.lomo.1"), runs.one(cell="l2.7b.adamw.8")
    reason = unfinished([a, b])
    share = None if reason else 100 * (gib(a) + OUTSIDE) / (8 * (gib(b) + OUTSIDE))
    table.values["memory_share_percent"] = value_or_reason(share, "%", reason)
    big = runs.one(cell="l2.65b.lomo.8")
    free = None if big.status != "done" else gib(big, "usable_bytes") - gib(big)
    table.values["65b.free_gib"] = value_or_reason(free, "GiB", big.reason)
