"""All optimizers side by side: what each keeps, what a step costs, where it ends, and how it is run.

Nothing is trained for this table: it joins the runs of three other exhibits.
"""

from lowmem.reporting import display
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.losses import difference
from lowmem.reporting.numbers.rate_grids import tuned
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import exact, missing, text

EXHIBIT = {
    "id": "extra_optimizers",
    "paper": "extra",
    "label": "Comparison",
    "order": 6,
    "kind": "table",
    "topic": "cost",
    "title": "Optimizers side by side",
    "experiments": ["gpt2_baselines", "peak_memory", "equal_batch"],
    "published": None,
}

METHODS = ("adamw", "adam_mini", "adam_mini_backward", "lomo", "adalomo", "sgd", "adafactor", "adafactor_zhai")
METHODS += ("came", "sm3", "lion", "lamb")
ALIKE = {"adam_mini_backward": "as Adam-mini: the same steps"}
BACKWARD = ("lomo", "adalomo", "adam_mini_backward")
COLUMNS = ["optimizer", "state / weights", "gradients kept / weights", "peak memory / AdamW's", "speed / AdamW's"]
COLUMNS += ["best rate", "final loss − AdamW's (nat)", "works in"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: <method>.state, <method>.gap."""
    of = {name: [run for run in runs if run.experiment == name] for name in EXHIBIT["experiments"]}
    peaks, speeds = {run.axes["method"]: run for run in of["peak_memory"]}, next(iter(of["equal_batch"]))
    methods = tuned(of["gpt2_baselines"])
    table = ExhibitResult(
        caption="State and gradients: bytes over those of the weights, 1.00 being one number per weight in the weights' own "
        "precision. Peak memory: one fine-tuning step, measured (Peak memory). Speed: whole training steps at equal batch, "
        "measured (Equal batch). Loss: GPT-2 of this tier, each method at the best of its own rates, above 0 is worse.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "Four models of different sizes stand behind one row; the exhibits named in the caption say which.",
            "SGD and LOMO were not trained on this GPT-2; LOMO's fine-tuning is in LOMO Table 3.",
            "Under which frameworks each one is tested stands in docs/frameworks.md.",
        ],
        bars=["state / weights", "peak memory / AdamW's"],
    )
    for name in METHODS:
        table.rows.append(row(table, name, methods, peaks, speeds))
    return table


def row(table: ExhibitResult, name: str, methods: dict, peaks: dict[str, Run], speeds: Run) -> list[str]:
    grid, peak, base = methods.get(name), peaks.get(name), peaks.get("adamw")
    runs = [run for run in [*(grid.best if grid else []), *([peak] if peak else [])] if run.status == "done"]
    state = runs[0].record["memory"] if runs else None  # bytes of a training run, else of the measured step
    table.values[f"{name}.state"] = (
        exact(state["optimizer_state"] / state["parameters"], "x weights") if state else missing("not run")
    )
    measured = peak is not None and peak.status == base.status == "done"
    ratio = f"{peak.final('measured_bytes') / base.final('measured_bytes'):.2f}" if measured else ""
    gap = missing(ALIKE.get(name, "not trained here"))
    if grid and name == "adamw":
        gap = grid.gone or exact(0.0, "nat")
    elif grid:
        gap = grid.gone or methods["adamw"].gone or difference(grid.best, methods["adamw"].best)
    table.values[f"{name}.gap"] = gap
    return [
        display.name(name),
        f"{table.values[f'{name}.state']['value']:.2f}" if state else "not run",
        f"{state['gradients'] / state['parameters']:.2f}" if state else "",
        ratio,
        speed(speeds, name),
        grid.rate if grid else "",
        "0" if gap["value"] == 0 else text(gap, True),
        "backward" if name in BACKWARD else "step() or backward",
    ]


def speed(run: Run, name: str) -> str:
    """Tokens per second over AdamW's with their interval; nothing for a method that was not timed."""
    found = (run.final("equal") or {}).get(name)
    ratio = found and found["ratio"]
    if not ratio:
        return run.reason or "" if name == "adamw" else ""
    return f"{ratio['value']:.2f}" + (f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio["low"] is not None else "")
