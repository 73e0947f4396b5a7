"""Table 2 of Adam-mini: Llama2-7B at each optimizer's largest batch, simulated over the sequence length left open.

Below it, the independent rerun of the same table on other cards, which the performance model is held against.
"""

from lowmem import plots
from lowmem.cells import SIMULATED, gib, missing, shown, use, value_or_reason
from lowmem.exhibit import Run, Runs, Shown, mark, printed, unfinished

EXHIBIT = {
    "id": "adam_mini_table2",
    "paper": "adam_mini",
    "label": "Table 2",
    "order": 20,
    "kind": "table",
    "topic": "cost",
    "title": "Throughput of Llama2-7B at the largest batch",
    "experiments": ["simulated"],
    "published": "adam_mini.table2",
}

LENGTHS = (512, 1024, 2048, 4096)
OPTIMIZERS = ("adamw", "adam_mini")
RERUN = {  # tokens/s of the independent rerun (data/published/adam_mini.yaml gives them in one line); cells with retries
    ("adamw", 1): (5165, ""),
    ("adamw", 2): (7104, ""),
    ("adamw", 3): (5630, "87 allocator retries"),
    ("adam_mini", 1): (4446, ""),
    ("adam_mini", 2): (6371, ""),
    ("adam_mini", 3): (7371, ""),
    ("adam_mini", 4): (6335, "58 allocator retries"),
}
COLUMNS = ["what", "optimizer", "tokens per sequence", "batch per GPU", "peak GiB per GPU", "tokens/s", "hours for 1 B"]
COLUMNS += ["printed or measured", "difference"]


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Two rows per sequence length, the printed pair, then the cells of the rerun."""
    table = Shown(
        caption=f"Llama2-7B on two GPUs. {SIMULATED}",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "The paper does not state the sequence length, so four are simulated; settings as in the official Llama "
            "runs: fully_shard, fp32 weights computing in bf16, no checkpointing.",
            "Simulated are the optimizers of this package. The paper and the rerun ran torch's AdamW and the official "
            "Adam-mini, whose Python loop takes longer.",
            "The model knows no allocator retries: near full memory real runs slow down, as two cells of the rerun show.",
            "The task speaks of eight cells of the rerun; seven have a number. The eighth, AdamW at batch 4, is shown.",
            "The printed pair was measured with version 1.0 of Adam-mini and was not measured again for 1.1.",
        ],
    )
    gains, lengths = [], 0
    for length in LENGTHS:
        pair = [runs.one(f"t2.{optimizer}.{length}") for optimizer in OPTIMIZERS]
        for optimizer, run in zip(OPTIMIZERS, pair):
            add_length(table, optimizer, length, run)
        if all(run.final("batch") for run in pair):
            gains.append(pair[1].final("tokens_per_s") / pair[0].final("tokens_per_s"))
            lengths += [run.final("batch") for run in pair] == [1, 4]
    add_printed(table, published)
    add_rerun(table, runs, published)
    reason = unfinished(runs.one(f"t2.{optimizer}.{length}") for optimizer in OPTIMIZERS for length in LENGTHS)
    if reason or not gains:
        table.values["gain"] = table.values["lengths_as_printed"] = {"value": None, "reason": reason or "nothing fits"}
    else:
        middle = sum(gains) / len(gains)
        bounds = {"low": min(gains), "high": max(gains), "range": "512 to 4096 tokens"}
        table.values["gain"] = {"value": middle, **bounds, "unit": "x AdamW"}
        table.values["lengths_as_printed"] = {"value": lengths, "unit": "lengths"}
    return table


def add_length(table: Shown, optimizer: str, length: int, run: Run) -> None:
    """One simulated row at the largest batch."""
    use(table, run)
    name = plots.name(optimizer)
    if run.status != "done":
        table.rows.append(["simulated, A800", name, length, run.reason, "", "", "", "", ""])
        return
    if run.final("batch") is None:
        table.rows.append(["simulated, A800", name, length, "none fits", shown(gib(run)), "", "", "", ""])
        return
    rate = run.final("tokens_per_s")
    cells = [run.final("batch"), shown(gib(run)), shown(rate, 0), shown(1e9 / rate / 3600, 1)]
    table.rows.append(["simulated, A800", name, length, *cells, "", ""])


def add_printed(table: Shown, published: dict) -> None:
    """The paper's own pair and what it derives from it."""
    for optimizer, batch in (("AdamW", 1), ("Adam-mini", 4)):
        value = printed(published, "tokens_per_s", optimizer=optimizer, batch_per_gpu=batch)
        hours = printed(published, "hours_1B_tokens", optimizer=optimizer)
        if value is None:
            continue
        table.published += mark(f"{optimizer}, batch {batch} per GPU", value)
        recalled = f"{hours['value']} (recalled)" if hours else ""
        row = ["printed, A800", optimizer, "not stated", batch, "", "", recalled, f"{value['value']:,.2f}", ""]
        table.rows.append(row)
    memory = printed(published, "tokens_per_s", optimizer="AdamW", batch_per_gpu=2)
    if memory is not None:
        table.published += mark("AdamW, batch 2 per GPU", memory)
        table.rows.append(["printed, A800", "AdamW", "not stated", 2, memory["value"], "", "", "", ""])
    table.published += mark("gain", printed(published, "throughput_gain_pct"))
    table.published += mark("wall-clock saved", printed(published, "wallclock_saving_pct"))
    table.published += mark(
        "independent rerun", printed(published, "independent_rerun_2xA100_SXM_torch2.8_seq2048_30steps")
    )


def add_rerun(table: Shown, runs: Runs, published: dict) -> None:
    """Each cell of the rerun beside what the model says of it."""
    worst, worst_plain, reason = 0.0, 0.0, None
    for optimizer in OPTIMIZERS:
        for batch in (1, 2, 3, 4):
            run = runs.one(f"rerun.{optimizer}.{batch}")
            use(table, run)
            measured, note = RERUN.get((optimizer, batch), (None, "no number: out of reach"))
            theirs = "" if measured is None else f"{measured:,}"
            cells = ["rerun, A100", plots.name(optimizer), 2048, batch]
            if run.status != "done":
                reason = reason or run.reason
                table.rows.append([*cells, run.reason, "", "", f"{theirs} {note}".strip(), ""])
                continue
            rate, fits = run.final("tokens_per_s"), run.final("fits")
            difference = ""
            if measured is not None:
                error = 100 * (rate / measured - 1)
                difference = f"{error:+.0f} %"
                worst = max(worst, abs(error))
                worst_plain = max(worst_plain, 0 if note else abs(error))
            speed = f"{rate:,.0f}" if fits else "out of memory"
            hours = shown(1e9 / rate / 3600, 1) if fits else ""
            table.rows.append([*cells, shown(gib(run)), speed, hours, f"{theirs} {note}".strip(), difference])
    for name, value in (("rerun.largest_error_percent", worst), ("rerun.largest_error_without_retries", worst_plain)):
        table.values[name] = value_or_reason(value, "%", reason)
    equal = [runs.one(f"rerun.{optimizer}.1") for optimizer in OPTIMIZERS]
    table.values["rerun.equal_batch"] = (
        missing(next(run for run in equal if run.status != "done"))
        if unfinished(equal)
        else {"value": equal[1].final("tokens_per_s") / equal[0].final("tokens_per_s"), "unit": "x AdamW"}
    )
