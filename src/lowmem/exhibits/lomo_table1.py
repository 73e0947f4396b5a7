"""Table 1 of LOMO, state columns: bytes of weights, gradients and optimizer state of LLaMA-7B.

The paper's GB are GiB. Activations need one measured or simulated forward pass and come with the memory simulator.
"""

from lowmem.exhibit import Runs, Shown, mark, printed, unfinished

EXHIBIT = {
    "id": "lomo_table1",
    "paper": "lomo",
    "label": "Table 1",
    "order": 30,
    "kind": "table",
    "title": "Memory of LLaMA-7B by component",
    "experiments": ["lomo_state_memory"],
    "published": "lomo.table1",
}

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD", "lomo": "LOMO"}
COLUMNS = ["optimizer", "checkpointing", "whose", "parameters", "gradients", "optimizer state", "activations", "total"]
PARTS = ["params", "gradients", "optim_states"]
NO_ACTIVATIONS = "not run: needs the memory simulator"


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Three rows for each optimizer: ours, and the published ones without and with activation checkpointing."""
    shown = Shown(
        caption="GiB of LLaMA-7B with 16-bit weights and gradients. Ours are counted; the gradient column is the most "
        "that is alive at once.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "Activations and totals are not reproduced yet: they need the memory simulator.",
            "Without checkpointing every printed total is 1.00 larger than the sum of its printed parts; the table "
            "shows both.",
            "The SGD row holds a 4-byte master copy of each weight and LOMO none, so the two rows differ by more than "
            "the fused update: SGD with 16-bit weights and no master would keep no state either.",
            "For LOMO the gradient column counts the largest gradient once; the fp32 copies that the update makes of "
            "gradient and weight are temporary and not in the paper's column either.",
        ],
    )
    worst, reason = 0.0, unfinished(runs)
    for optimizer, name in OPTIMIZERS.items():
        run = runs.one(optimizer)
        ours = components(run)
        if ours is None:
            shown.rows.append([name, "either", "ours", run.reason, "", "", NO_ACTIVATIONS, ""])
        else:
            shown.runs_used.append(run.id)
            shown.rows.append([name, "either", "ours", *(f"{ours[part]:.2f}" for part in PARTS), NO_ACTIVATIONS, ""])
        for checkpointing in (False, True):
            place = {"optimizer": name, "checkpointing": checkpointing}
            theirs = {part: printed(published, part, **place) for part in [*PARTS, "activations", "total_printed"]}
            if None in theirs.values():
                continue
            shown.rows.append(
                [name, "on" if checkpointing else "off", "published", *(f"{v['value']:.2f}" for v in theirs.values())]
            )
            total = sum(v["value"] for part, v in theirs.items() if part != "total_printed")
            if abs(total - theirs["total_printed"]["value"]) > 0.005:
                shown.rows[-1][-1] += f" (parts add up to {total:.2f})"
            for part in PARTS if not checkpointing else []:
                shown.published += mark(f"{name}, {part}", theirs[part])
                if ours is not None:
                    worst = max(worst, abs(ours[part] - theirs[part]["value"]))
        for part in PARTS:
            value = {"value": None, "reason": run.reason} if ours is None else {"value": ours[part], "unit": "GiB"}
            shown.values[f"{optimizer}.{part}"] = value
    state = {"value": None, "reason": reason} if reason else {"value": worst, "unit": "GiB"}
    shown.values["largest_difference"] = state
    return shown


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
