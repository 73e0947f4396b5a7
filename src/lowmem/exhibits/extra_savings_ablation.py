"""What saves memory: LLaMA-7B, one change at a time from plain AdamW, then together. Asked in LOMO's issue 72."""

from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.memory import SIMULATED, gib, part, shown
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import exact, missing

EXHIBIT = {
    "id": "extra_savings_ablation",
    "paper": "extra",
    "label": "Savings",
    "order": 30,
    "kind": "table",
    "topic": "cost",
    "title": "What saves how much memory",
    "experiments": ["simulated"],
    "published": None,
}

CELLS = {
    "baseline": "AdamW, 16-bit weights, fp32 copy and moments",
    "fused_attention_off": "… with explicit attention and norms (code of 2023)",
    "adam_mini": "… with Adam-mini in place of AdamW",
    "no_fp32_copy": "… all in 16 bits",
    "checkpointing": "… with activation checkpointing",
    "zero3_8": "… split over 8 GPUs (ZeRO-3)",
    "offload": "all in 16 bits, moments in host memory",
    "sgd_rule": "SGD in 16 bits",
    "sgd_rule_checkpointing": "SGD in 16 bits, checkpointing",
    "lomo": "LOMO (SGD inside backward)",
    "lomo_checkpointing": "LOMO, checkpointing",
    "adam_mini_backward_checkpointing": "Adam-mini inside backward, 16 bits, checkpointing",
}
PARTS = {
    "weights": ("parameters",),
    "gradients": ("gradients",),
    "optimizer state": ("optimizer_state",),
    "activations": ("activations",),
    "temporary": ("temporaries", "communication"),
}
COLUMNS = ["setting", "peak GiB per GPU", "saved", *PARTS, "host"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """A row per setting: the parts are those at the peak, wherever in the step that is."""
    table = ExhibitResult(
        caption=f"LLaMA-7B, 8 sequences of 512 tokens per GPU; parts at the moment of the peak. {SIMULATED}",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "No table of either paper: users of LOMO asked which of its savings come from ZeRO, 16 bits and checkpointing.",
            "Without checkpointing the peak is at the start of backward, when all activations and no gradients are there: "
            "dropping gradients early then lowers no peak.",
        ],
    )
    base = runs.one(cell="ab.baseline")
    for cell, name in CELLS.items():
        run = runs.one(cell=f"ab.{cell}")
        if run.status != "done":
            table.rows.append([name, run.reason, *[""] * (len(COLUMNS) - 2)])
            table.values[f"{cell}.peak_gib"] = missing(run.reason)
            continue
        table.values[f"{cell}.peak_gib"] = exact(gib(run), "GiB")
        saved = "" if gib(base) is None or cell == "baseline" else f"{100 * (1 - gib(run) / gib(base)):.0f} %"
        parts = [shown(part(run, *names)) for names in PARTS.values()]
        table.rows.append([name, shown(gib(run)), saved, *parts, shown(gib(run, "host_bytes"))])
    return table
