"""Adam-mini's rule run inside backward: half the optimizer state and no gradients kept, ours and in no paper."""

from lowmem.reporting import display
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import absent, difference, final_loss, mean
from lowmem.reporting.runs import Run, Runs, where
from lowmem.reporting.values import Value, exact, missing, text

EXHIBIT = {
    "id": "extra_adam_mini_backward",
    "paper": "extra",
    "label": "Extra",
    "order": 10,
    "kind": "table",
    "topic": "cost",
    "times": ["step_ms.*"],
    "title": "Adam-mini inside backward",
    "experiments": ["backward_update"],
    "published": None,
}

METHODS = ("adamw", "adam_mini", "adam_mini_backward")
COLUMNS = ["method", "final loss (nat)", "minus Adam-mini (nat)", "weights (bytes)", "gradients after backward (bytes)"]
COLUMNS += ["optimizer state (bytes)", "all three, share of AdamW", "step (ms)"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: loss.largest_difference (over seeds, exact), gradient.share (bytes, of plain Adam-mini)."""
    methods = {name: where(runs, method=name) for name in METHODS}
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "The same model, data order and settings, nobody clips. Final validation loss: mean over seeds with 95 % "
        "interval. Bytes are counts of what is alive between backward and step; the state includes step counters.",
        columns=COLUMNS,
        rows=[],
    )
    base = total(methods["adamw"])
    for name, group in methods.items():
        against = difference(group, methods["adam_mini"])
        parts = [memory(group, key) for key in ("parameters", "gradients", "optimizer_state")]
        share = f"{100 * total(group) / base:.1f} %" if base and total(group) else ""
        cells = ["" if part is None else f"{part:,}" for part in parts]
        gap = "" if name == "adam_mini" else text(against, True, digits=6)
        shown.rows.append([display.name(name), text(mean(group), digits=4), gap, *cells, share, milliseconds(group)])
    shown.values = {"loss.largest_difference": furthest(methods), "gradient.share": gradients(methods)}
    return shown


def memory(group: list[Run], key: str) -> int | None:
    """Bytes of a component; equal over seeds."""
    return next((run.record["memory"][key] for run in group if run.status == "done" and run.record["memory"]), None)


def total(group: list[Run]) -> int | None:
    parts = [memory(group, key) for key in ("parameters", "gradients", "optimizer_state")]
    return None if None in parts else sum(parts)


def milliseconds(group: list[Run]) -> str:
    """Median over seeds of the runs' median step."""
    found = sorted(
        run.record["throughput"]["step_ms"]["median"] for run in group if (run.record or {}).get("throughput")
    )
    return f"{found[len(found) // 2]:.1f}" if found else ""


def furthest(methods: dict[str, list[Run]]) -> Value:
    """Largest absolute difference of final losses at equal seed."""
    inside, plain = methods["adam_mini_backward"], methods["adam_mini"]
    gone = absent(inside, plain)
    if gone:
        return gone
    theirs = {run.seed: final_loss(run) for run in plain}
    return exact(max(abs(final_loss(run) - theirs[run.seed]) for run in inside), "nat")


def gradients(methods: dict[str, list[Run]]) -> Value:
    inside, plain = methods["adam_mini_backward"], methods["adam_mini"]
    gone = absent(inside, plain)
    if gone or not memory(plain, "gradients"):
        return gone or missing("not run: no count of gradient bytes")
    return exact(memory(inside, "gradients") / memory(plain, "gradients"), "of Adam-mini's")
