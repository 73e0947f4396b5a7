"""Table 1 of LOMO: bytes of weights, gradients, optimizer state and activations of LLaMA-7B.

The paper's GB are GiB. The first three columns are counted, activations are simulated: what is alive between forward and
backward, as the authors measured (issue 80 of their repository).
"""

from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.memory import gib
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, unfinished
from lowmem.reporting.values import Value, value_or_reason

EXHIBIT = {
    "id": "lomo_table1",
    "paper": "lomo",
    "label": "Table 1",
    "order": 30,
    "kind": "table",
    "topic": "cost",
    "title": "Memory of LLaMA-7B by component",
    "experiments": ["lomo_state_memory", "simulated"],
    "published": "lomo.table1",
}

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD", "lomo": "LOMO"}
COLUMNS = ["optimizer", "checkpointing", "whose", "parameters", "gradients", "optimizer state", "activations", "total"]
COLUMNS += ["peak"]
PARTS = ["params", "gradients", "optim_states"]
PRINTED = [*PARTS, "activations", "total_printed"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Two rows for each optimizer and checkpointing setting: ours and the published one."""
    shown = ExhibitResult(
        caption="GiB of LLaMA-7B with 16-bit weights and gradients, 8 sequences of 512 tokens. Weights, gradients and "
        "state are counted (the gradient column is the most that is alive at once), activations and the peak simulated.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "Activations: those of Hugging Face's LLaMA of 2023 with fp32 softmax and composite norms (fake_kernels.py, "
            "eager), at the end of the forward pass. That version's attention also clamped its scores, which kept two more "
            "matrices of probabilities; ours does not.",
            "The total adds up the columns, as the paper does; the peak is the most that is alive at any moment, which "
            "is less where activations are gone before all gradients are there.",
            "Without checkpointing every printed total is 1.00 larger than the sum of its printed parts; the table "
            "shows both.",
            "The SGD row holds a 4-byte master copy of each weight and LOMO none, so the two rows differ by more than "
            "the fused update: SGD with 16-bit weights and no master would keep no state either.",
            "For LOMO the gradient column counts the largest gradient once; the fp32 copies that the update makes of "
            "gradient and weight are temporary and not in the paper's column either.",
        ],
    )
    worst, worst_activations, missing = 0.0, 0.0, None
    counted = [runs.one(optimizer=optimizer) for optimizer in OPTIMIZERS]
    for optimizer, name in OPTIMIZERS.items():
        run = runs.one(optimizer=optimizer)
        ours = components(run)
        for checkpointing in (False, True):
            cell = runs.one(cell=f"l1.{optimizer}.{'on' if checkpointing else 'off'}")
            activations = gib(cell, "kept_activation_bytes")
            missing = missing or cell.reason
            place = {"optimizer": name, "checkpointing": checkpointing}
            theirs = {part: printed(published, part, **place) for part in PRINTED}
            shown.rows.append(
                [name, "on" if checkpointing else "off", "ours", *our_cells(run, ours, cell, activations)]
            )
            if None not in theirs.values():
                shown.rows.append([name, "on" if checkpointing else "off", "published", *their_cells(theirs), ""])
                shown.published += published_entry(
                    f"{name}, activations, {'with' if checkpointing else 'without'} checkpointing",
                    theirs["activations"],
                )
                if activations is not None:
                    error = 100 * abs(activations / theirs["activations"]["value"] - 1)
                    worst_activations = max(worst_activations, error)
            for part in PARTS if not checkpointing and theirs[PARTS[0]] else []:
                shown.published += published_entry(f"{name}, {part}", theirs[part])
                if ours is not None:
                    worst = max(worst, abs(ours[part] - theirs[part]["value"]))
        for part in PARTS:
            shown.values[f"{optimizer}.{part}"] = value_or_reason(ours and ours[part], "GiB", run.reason)
    shown.values["lomo.total_over_params"] = over_params(runs)
    shown.values["largest_difference"] = value_or_reason(worst, "GiB", unfinished(counted))
    shown.values["activations.largest_error_percent"] = value_or_reason(worst_activations, "%", missing)
    return shown


def over_params(runs: Runs) -> Value:
    """LOMO with checkpointing: weights, most gradients alive and simulated activations over the weights alone."""
    counted, cell = runs.one(optimizer="lomo"), runs.one(cell="l1.lomo.on")
    if reason := unfinished([counted, cell]):
        return value_or_reason(None, "times the weights", reason)
    ours = components(counted)
    total = sum(ours.values()) + gib(cell, "kept_activation_bytes")
    return value_or_reason(total / ours["params"], "times the weights", None)


def our_cells(run: Run, ours: dict | None, cell: Run, activations: float | None) -> list[str]:
    """Counted parts, simulated activations, their sum, and the simulated peak."""
    counted = [run.reason, "", ""] if ours is None else [f"{ours[part]:.2f}" for part in PARTS]
    if activations is None:
        return [*counted, cell.reason, "", ""]
    total = "" if ours is None else f"{sum(ours.values()) + activations:.2f}"
    return [*counted, f"{activations:.2f}", total, f"{gib(cell):.2f}"]


def their_cells(theirs: dict) -> list[str]:
    """The printed row, and what its parts add up to where that is another total."""
    cells = [f"{value['value']:.2f}" for value in theirs.values()]
    total = sum(value["value"] for part, value in theirs.items() if part != "total_printed")
    if abs(total - theirs["total_printed"]["value"]) > 0.005:
        cells[-1] += f" (parts add up to {total:.2f})"
    return cells


def components(run) -> dict | None:
    """GiB of weights, most gradients alive at once, and optimizer state with its master copy; None without a record."""
    if run.final("param_bytes") is None:
        return None
    found = {
        "params": run.final("param_bytes"),
        "gradients": run.final("live_grad_bytes"),
        "optim_states": run.final("state_bytes"),  # moments and master copy
    }
    return {part: value / 2**30 for part, value in found.items()}
