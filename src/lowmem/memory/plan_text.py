"""The answer of `lowmem plan MODEL` as text: the table, a summary, and its basis; for a terminal or in Markdown."""

from __future__ import annotations

from lowmem.memory import calibration, hardware, throughput
from lowmem.memory.cell import TrainingSetup
from lowmem.memory.hardware import Gpu
from lowmem.memory.optimizer_names import AO
from lowmem.memory.parts import PARTS
from lowmem.memory.plan_columns import COLUMNS
from lowmem.memory.target_model import Target
from lowmem.memory.throughput import Plan

GIB = 2**30
BASE = "adamw"
HEADROOM = 0.95  # share of the memory that advice fills; fragments take some of the rest
WIDTHS = {"gradients": 11, "activations": 13}  # of columns; others 9
PRECISIONS = {
    "fp32": "fp32 throughout",
    "bf16": "bf16 weights, gradients and moments",
    "mixed": "fp32 weights, gradients and moments, computing in bf16",
    "master": "bf16 weights and gradients, fp32 copies and moments",
}
SPLIT = {
    0: "every GPU holds everything",
    1: "optimizer state split over the GPUs (ZeRO-1)",
    2: "gradients and optimizer state split over the GPUs (ZeRO-2)",
    3: "weights, gradients and optimizer state split over the GPUs (ZeRO-3, fully_shard)",
}
BUDGET = 1e9  # tokens
MOST_TOLD = 12  # optimizers that are compared in a sentence each; the table of more tells enough


def heading(model: Target, cell: TrainingSetup, gpu: Gpu) -> list[str]:
    """What is planned, as lines of text."""
    lines = [
        f"{model.name}: {model.parameters() / 1e9:.2f} B parameters, {model.depth} layers, {cell.seq_len} tokens per sequence"
    ]
    split = SPLIT[cell.zero] if cell.data_parallel > 1 else "one GPU holds everything"
    if cell.tensor_parallel > 1:
        split += f"; layers split over {cell.tensor_parallel} (tensor parallelism)"
    if cell.expert_parallel > 1:
        split += f"; experts divided over {cell.expert_parallel} (expert parallelism), tokens spread evenly"
    lines.append(f"{cell.gpus} x {gpu.name}, {gpu.usable / GIB:.1f} GiB usable each; {split}")
    extras = [recomputed(cell)] * cell.checkpointing + adapted(cell)
    extras += [f"gradients of {cell.accumulate} batches added up"] * (cell.accumulate > 1)
    extras += ["moments in host memory"] * cell.offload
    extras += [f"documents of {cell.document} tokens packed into each sequence"] * (cell.document is not None)
    how = f"{cell.attention} attention" + ("" if model.fused else " (it has no fused one)")
    held = PRECISIONS[cell.precision] if cell.adapters is None else "fp32 adapters"
    if cell.adapters is not None and cell.data_parallel > 1 and cell.zero >= 2:
        held = "16-bit adapters"
    lines.append("; ".join([held, how, *extras]))
    return lines


def rows(found: dict[str, Plan], cell: TrainingSetup, gpu: Gpu, known: bool) -> list[list[str]]:
    """The cells of the table as text, optimizer by optimizer."""
    result = []
    for name, plan in found.items():
        sizes = [sum(plan.single.most[role] for role in roles) / GIB for roles in PARTS.values()]
        row = [name, f"{plan.single.peak / GIB:.1f}", *(f"{x:.1f}" for x in sizes)]
        if plan.batch is None:
            result.append([*row, "none", "", f"{(gpu.usable - plan.single.peak) / GIB:.1f}", "", "", ""])
            continue
        low, middle, high = calibration.SPEED if known else (1, 1, 1)
        rate = plan.largest_speed.tokens_per_s
        speed = f"{low * rate:,.0f}-{high * rate:,.0f}" if known else f"{rate:,.0f}"
        batch = f"{plan.batch}{'+' if plan.batch == throughput.MOST else ''}"
        hours = plan.largest_speed.hours(BUDGET) / middle
        energy = plan.largest_speed.kilowatt_hours(BUDGET, gpu, cell.gpus) / middle
        free = f"{(gpu.usable - plan.largest.peak) / GIB:.1f}"
        row += [batch, f"{plan.largest.peak / GIB:.1f}", free, speed]
        result.append([*row, f"{hours:,.1f} h", f"{energy:,.0f} kWh"])
    return result


def table(found: dict[str, Plan], cell: TrainingSetup, gpu: Gpu, known: bool) -> list[str]:
    """Memory at one sequence per GPU, then the largest batch with its speed, time and energy."""
    width = max(12, *(len(name) + 1 for name in found))
    widths = [width, 8, *(WIDTHS.get(part, 9) for part in PARTS), 9, 8, 7, 17, 12, 10]
    left = f"{'':<{width}}{'at 1 sequence per GPU, GiB':^59}  largest batch that fits"
    lines, shown = [left], [COLUMNS, *rows(found, cell, gpu, known)]
    widths = [max(n, *(len(row[i]) + 1 for row in shown)) for i, n in enumerate(widths)]
    for row in shown:
        lines.append((f"{row[0]:<{width}}" + "".join(f"{text:>{n}}" for text, n in zip(row[1:], widths[1:]))).rstrip())
    return lines


def plain(model: Target, cell: TrainingSetup, gpu: Gpu, found: dict[str, Plan], fits: dict[str, str]) -> str:
    """The answer for a terminal. fits: {optimizer of which nothing fits: what would make it fit}."""
    known = not experts(model)
    parts = [heading(model, cell, gpu), table(found, cell, gpu, known), remarks(cell, gpu, found, fits, known)]
    return "\n\n".join("\n".join(lines) for lines in parts)


def markdown(model: Target, cell: TrainingSetup, gpu: Gpu, found: dict[str, Plan], fits: dict[str, str]) -> str:
    """The answer to paste into an issue."""
    known = not experts(model)
    names = list(COLUMNS)
    lines = [
        f"**lowmem plan** {heading(model, cell, gpu)[0]}",
        "",
        *(f"- {line}" for line in heading(model, cell, gpu)[1:]),
        "",
    ]
    lines += [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(names) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows(found, cell, gpu, known)]
    return "\n".join([*lines, "", "Memory in GiB.", "", *remarks(cell, gpu, found, fits, known)])


def experts(model: Target) -> bool:
    """Whether layers hold experts, stacked weights (no convolutions), whose speed was never compared with a measured one."""
    layers = model.build(model.lead + model.period, "fused").modules()
    own = [p for layer in layers if "Conv" not in type(layer).__name__ for p in layer.parameters(recurse=False)]
    return any(p.ndim > 2 and p.shape[0] > 1 for p in own)


def remarks(cell: TrainingSetup, gpu: Gpu, found: dict[str, Plan], fits: dict[str, str], known: bool) -> list[str]:
    """What the table says, in sentences, and what it rests on."""
    lines, tight = [], []
    base = found[BASE]
    for name, plan in found.items():
        if name == BASE or len(found) > MOST_TOLD:
            continue
        saved = (base.single.peak - plan.single.peak) / GIB
        text = (
            f"{name} needs {abs(saved):.1f} GiB {'less' if saved >= 0 else 'more'} per GPU than AdamW at one sequence"
        )
        if plan.batch and base.batch:
            ratio = plan.largest_speed.tokens_per_s / base.largest_speed.tokens_per_s
            text += f"; at the largest batches it trains {ratio:.2f} x as fast"
        elif plan.batch:
            text += ", and fits where AdamW does not"
        lines.append(text + ".")
        if plan.batch and plan.largest.peak > HEADROOM * gpu.usable:
            tight.append(name)
    if tight:
        lines.append(
            f"The largest batch of {', '.join(tight)} leaves less than {100 - 100 * HEADROOM:.0f} % free; fragments of memory "
            "take some of it, so start one sequence lower."
        )
    lines += [f"{name} does not fit: {way}." for name, way in fits.items()]
    if cell.precision in ("mixed", "fp32") and not cell.offload:
        copy = base.single.most["optimizer_state"] / 2 / GIB  # as large as one of the two moments, split as they are
        lines.append(
            f"AdamW is one fused kernel here; torch's default on a GPU (foreach) holds {copy:.1f} GiB more during its step."
        )
    if compiled := ", ".join(name for name in found if name in AO):
        lines.append(
            f"{compiled}: torchao compiles this step, and what the compiled code holds for the moment is not counted."
        )
    lines += grounds(found, known)
    if gpu.calibrated:
        lines.append(f"{gpu.name}: {gpu.calibrated}.")
    return lines


def grounds(found: dict[str, Plan], known: bool) -> list[str]:
    """What the numbers rest on."""
    median, worst = calibration.ERRORS
    speed = "span 80 % of the steps that others measured, hours and energy are at their middle"
    if not known:
        speed = "of models with experts are a roofline's, which nothing measured confirms"
    lines = [
        "Simulated, no GPU was used. Peaks come from tracing the real step; on held-out steps that others measured the median",
        f"error was {median} %, the worst {worst} % (docs/planner_cells.md).",
        f"Tokens/s {speed}.",
        f"{hardware.OUTSIDE:g} GiB is set aside for CUDA; energy is at board power. --explain says what each column means.",
    ]
    if fitting := next((name for name, plan in found.items() if plan.batch), None):
        peak = found[fitting].single.peak / GIB
        low, middle, high = (peak * factor for factor in calibration.CARD)
        lines += [
            "The allocator keeps what was once in use: where there is room, nvidia-smi shows",
            f"{low:.1f} to {high:.1f} GiB for the {peak:.1f} of {fitting}, often {middle:.1f}.",
        ]
    return lines


def recomputed(cell: TrainingSetup) -> str:
    """How layers are recomputed, as text."""
    return "activation checkpointing" + (
        f" of one layer in {cell.checkpoint_every}" if cell.checkpoint_every > 1 else ""
    )


def adapted(cell: TrainingSetup) -> list[str]:
    """Adapters and packed weights, as text."""
    if cell.adapters is None:
        return []
    where = cell.adapters.targets if isinstance(cell.adapters.targets, str) else ", ".join(cell.adapters.targets)
    base = "16-bit" if cell.adapters.base == "16" else f"4-bit ({cell.adapters.base})"
    return [f"LoRA of rank {cell.adapters.rank} on {where}, base weights frozen in {base}"]
