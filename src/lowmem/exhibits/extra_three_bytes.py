"""Ours: three bytes per parameter. Does Adam-mini train as well with an 8-bit moment, inside backward, in bf16 weights?"""

from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.losses import difference, mean
from lowmem.reporting.panels.losses import side_by_side
from lowmem.reporting.runs import Run, Runs, by_axis
from lowmem.reporting.values import Value, exact, missing, text

EXHIBIT = {
    "id": "extra_three_bytes",
    "paper": "extra",
    "label": "Extra",
    "order": 37,
    "kind": "figure",
    "title": "Three bytes per parameter: an 8-bit first moment, inside backward, in bf16 weights",
    "experiments": [],
    "also": {"overnight": ["three_bytes", "three_bytes_state"]},
    "archived": ["overnight/three_bytes", "overnight/three_bytes_state"],
    "published": None,
}

NAMES = {
    "fp32": "fp32 moment",
    "bf16": "bf16 moment",
    "int8": "8-bit moment",
    "int8_stochastic": "8-bit moment, stochastic rounding",
    "backward": "8-bit moment, inside backward",
    "weights_nearest": "the same, bf16 weights, nearest",
    "weights_stochastic": "the same, bf16 weights, stochastic",
    "weights_corrected": "the same, bf16 weights and 8 more bits",
}
LENGTHS = ("s813", "s2440")


def norm(run: Run) -> float | None:
    return run.final("embedding_norm")


def state_bytes(run: Run) -> float | None:
    """Bytes of state tensors per parameter, as they lay in memory."""
    memory = (run.record or {}).get("memory") or {}
    width = 2 if run.config["measure"].get("weights") == "bf16" else 4
    if not memory.get("optimizer_state") or not memory.get("parameters"):
        return None
    return memory["optimizer_state"] / (memory["parameters"] / width)


def allocated(runs: list[Run]) -> Value:
    """Bytes per parameter that the allocator kept for the state, without one fp32 number per block of the second moment."""
    if not runs or runs[0].status != "done":
        return missing(runs[0].reason if runs else "not run: not planned in this tier")
    kept, blocks, weights = (runs[0].final(key) for key in ("state_bytes", "second_moment_scalars", "parameters"))
    return exact((kept - 4 * blocks) / weights, "bytes per weight")


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: gap.<kind>.<length> and norm.<kind>.<length> (minus the fp32 moment), state.<kind>.<length> (bytes per
    parameter), allocated.<kind> (the same as the allocator has it, without block scalars, on a Llama of 20 million)."""
    found = list(runs) or runs.archived
    trained = by_axis((run for run in found if run.experiment == "three_bytes"), "kind", "steps")
    measured = by_axis((run for run in found if run.experiment == "three_bytes_state"), "kind")
    shown = ExhibitResult(
        caption="Adam-mini on a Llama of 42 thousand parameters, 0.8 and 2.5 million bytes of Shakespeare, rate 6e-3: loss "
        "on the whole held-out text minus that with an fp32 moment in step(), paired by seed. The norm is that of the "
        "token embedding after training; state: moments, scales and block scalars, counted on the tensors; allocated: what "
        "PyTorch's allocator holds more after two steps of a Llama of 20 million parameters, block scalars left out. Norms "
        "are clipped at 1.0 everywhere. Bars: 95 % over seeds.",
        columns=[
            "kind",
            "steps",
            "loss (nat per byte)",
            "minus fp32",
            "embedding norm minus fp32",
            "state (bytes per weight)",
            "allocated (bytes per weight)",
        ],
        rows=[],
        deviations=["In nobody's paper. A model this small has many block scalars for its weights."],
    )
    held = {name: allocated(measured.get(name, [])) for name in NAMES}
    shown.values |= {f"allocated.{name}": size for name, size in held.items()}
    for length in LENGTHS:
        exact = trained.get(("fp32", length), [])
        for name, label in NAMES.items():
            own = trained.get((name, length), [])
            gap, grown = difference(own, exact), difference(own, exact, norm, "2-norm")
            size = {**mean(own, state_bytes), "unit": "bytes per weight"}
            shown.values[f"state.{name}.{length}"] = size
            if name != "fp32":
                shown.values |= {f"gap.{name}.{length}": gap, f"norm.{name}.{length}": grown}
            apart = ["", ""] if name == "fp32" else [text(gap, signed=True), text(grown, signed=True)]
            row = [label, length[1:], text(mean(own)), *apart, text(size), text(held[name])]
            if length in lengths_of(trained):
                shown.rows.append(row)
    shown.figure = draw(shown.values, lengths_of(trained))
    return shown


def lengths_of(trained: dict[tuple, list[Run]]) -> list[str]:
    """The lengths of which any run is there; where there is none, the one that the claims are about."""
    there = {length for (_, length), group in trained.items() if any(run.record for run in group)}
    return [length for length in LENGTHS if length in there] or [LENGTHS[-1]]


def draw(values: dict, lengths: list[str]):
    """A panel for each length: loss beyond that of the fp32 moment."""
    drawn, panels = plots.figure([lengths], width=1.5 + 3.75 * len(lengths), height=3.2)
    for length in lengths:
        rows = [
            (label, values[f"gap.{name}.{length}"], plots.SERIES[0]) for name, label in NAMES.items() if name != "fp32"
        ]
        side_by_side(panels[length], rows, "minus fp32 (nat per byte)")
        panels[length].set_title(f"After {int(length[1:]):,} steps")
    return drawn
