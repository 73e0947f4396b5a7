"""Measured speed at equal batch and at the largest batch under one memory cap, for every optimizer."""

from lowmem.analysis import stats
from lowmem.reporting import display
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.memory import shown
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import Value, missing

EXHIBIT = {
    "id": "extra_equal_batch",
    "paper": "extra",
    "label": "Equal batch",
    "order": 10,
    "kind": "table",
    "topic": "cost",
    "times": ["equal.*", "largest.*", "two_passes"],
    "title": "Throughput at equal batch, and at the largest batch under a cap",
    "experiments": ["equal_batch"],
    "published": None,
}

NAMES = {"lomo_two_passes": "LOMO, norm clipping", "adam_mini_backward": "Adam-mini in backward"}
COLUMNS = ["optimizer", "equal batch: peak MB", "tokens/s", "x AdamW [95 %]"]
COLUMNS += ["largest batch", "its peak MB", "its tokens/s", "its x AdamW [95 %]"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """A row per optimizer: at equal batch, then at the largest."""
    run = next(iter(runs))
    settings = run.config["measure"]
    use_gpu = settings.get("device") == "cuda"
    table = ExhibitResult(
        caption=scale.model(runs)
        + f"Training steps of one model, {settings['seq_len']} tokens per sequence, all optimizers in turn in one "
        f"process: at batch {settings['batch']}, and at the largest batch whose predicted peak stays under "
        f"{settings['cap_mb']:g} MB. Measured on {'the GPU' if use_gpu else 'the CPU'}; ratios within rounds.",
        columns=COLUMNS,
        rows=[],
        deviations=["Measured at this tier's model size, not at 7B; adam_mini_table2 simulates the paper's."],
    )
    labels = list(settings["optimizers"])
    for label in labels:
        if run.status != "done":
            table.rows.append([NAMES.get(label, display.name(label)), run.reason, *[""] * (len(COLUMNS) - 2)])
            for kind in ("equal", "largest"):
                table.values[f"{kind}.{label}"] = missing(run.reason)
            continue
        cells = []
        for kind in ("equal", "largest"):
            found = run.final(kind)[label]
            table.values[f"{kind}.{label}"] = value(found["ratio"])
            batch = [] if kind == "equal" else [found["batch"] or "none fits"]
            peak = None if found["peak_bytes"] is None else found["peak_bytes"] / 1e6
            cells += [*batch, shown(peak, 1), shown(found["tokens_per_s"], 0), interval(found["ratio"])]
        table.rows.append([NAMES.get(label, display.name(label)), *cells])
    table.values["two_passes"] = slowdown(run)
    return table


def value(ratio: dict | None) -> Value:
    """A ratio with its interval for the claims."""
    return missing("out of memory: not one sequence fits") if ratio is None else {**ratio, "unit": "x"}


def interval(ratio: dict | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['value']:.2f}" + (f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio["low"] is not None else "")


def slowdown(run) -> Value:
    """Step time of LOMO with norm clipping over LOMO without, round by round."""
    rounds: dict[str, list[float]] = {}
    for line in run.curve():
        if line["kind"] == "equal":
            rounds.setdefault(line["label"], []).append(line["tokens_per_s"])
    if run.status != "done" or not {"lomo", "lomo_two_passes"} <= rounds.keys():
        return missing(run.reason or "not run: LOMO is not among the optimizers")
    found = stats.estimate([one / two for one, two in zip(rounds["lomo"], rounds["lomo_two_passes"])])
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n, "unit": "x one pass"}
