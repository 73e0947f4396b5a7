"""Memory and throughput of AdaLomo beside AdamW, Adafactor and LOMO, simulated. The paper's table is only recalled."""

from lowmem.memory.hardware import OUTSIDE
from lowmem.reporting import display
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.memory import SIMULATED, gib, rate, shown
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import value_or_reason

EXHIBIT = {
    "id": "adalomo_memory",
    "paper": "adalomo",
    "label": "Table (number unknown)",
    "order": 20,
    "kind": "table",
    "topic": "cost",
    "title": "Memory and throughput of AdaLomo",
    "experiments": ["simulated"],
    "published": "adalomo.memory_throughput",
}

OPTIMIZERS = ("adamw", "adafactor", "lomo", "adalomo")
SETTINGS = {"7b": (4, 8), "13b": (8, 4)}  # GPUs, sequences per GPU
COLUMNS = ["model", "optimizer", "GPUs", "batch per GPU", "total GiB", "recalled GB", "tokens/s per GPU"]
COLUMNS += ["recalled tokens/s"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Four rows per model size; the recalled numbers decide nothing."""
    table = ExhibitResult(
        caption=f"LLaMA on A800-80GB, memory over all GPUs. {SIMULATED}",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "The published numbers are recalled and not confirmed anywhere; they are shown and decide nothing.",
            "Sequence length 2048 and checkpointing are the official scripts'; GPU counts and batches are recalled too.",
            "LoRA, 30B and 65B are left out: no settings are known for them.",
        ],
    )
    for size, (gpus, batch) in SETTINGS.items():
        for optimizer in OPTIMIZERS:
            run = runs.one(cell=f"al.{size}.{optimizer}")
            place = {"model": size.upper(), "optimizer": display.name(optimizer), "gpus": gpus, "micro_batch": batch}
            memory, theirs_speed = printed(published, "memory_gb_total", **place), printed(published, "tgs", **place)
            table.published += published_entry(f"{size.upper()}, {display.name(optimizer)}: GB in all", memory)
            table.published += published_entry(
                f"{size.upper()}, {display.name(optimizer)}: tokens/s per GPU", theirs_speed
            )
            theirs = ["" if value is None else f"{value['value']:g}" for value in (memory, theirs_speed)]
            cells = [size.upper(), display.name(optimizer), gpus, batch]
            speed, reason = rate(run)
            per_gpu = speed and speed / gpus
            key = f"{size}.{optimizer}.tokens_per_s"
            table.values[key] = value_or_reason(per_gpu, "token/s per GPU", reason)
            if run.status != "done":
                table.rows.append([*cells, run.reason, theirs[0], "", theirs[1]])
                continue
            total = shown(gpus * (gib(run) + OUTSIDE), 1)
            table.rows.append([*cells, total, theirs[0], reason or shown(per_gpu, 0), theirs[1]])
    return table
