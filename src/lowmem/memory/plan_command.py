"""The answer of `lowmem plan MODEL`: does it fit, at which batch, how fast, and what which optimizer buys."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from lowmem.errors import Misuse, nearest
from lowmem.memory import hardware, target_model, throughput
from lowmem.memory.accountant import Account, Cell, account, check_settings
from lowmem.memory.hardware import Gpu
from lowmem.memory.parts import PARTS
from lowmem.memory.target_model import Target
from lowmem.memory.throughput import Plan
from lowmem.models import _hub
from lowmem.optim import names

GIB = 2**30
BASE = "adamw"
USUAL = ("adamw", "adam_mini", "lomo")
BACKWARD = "+backward"
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
HEADROOM = 0.95  # share of the memory that advice fills; fragments take some of the rest
MOST_GPUS_TRIED = 64


def optimizer_settings(name: str) -> dict:
    """Settings for optim.make from a name on the command line: adam_mini, or adam_mini+backward to run inside backward."""
    plain = name.removesuffix(BACKWARD)
    if plain not in names():
        raise Misuse(f"unknown optimizer {name!r}{nearest(plain, names())}")
    if name.endswith(BACKWARD) and plain in ("lomo", "adalomo"):
        raise Misuse(f"{plain} runs inside backward already; drop {BACKWARD}")
    return {"name": plain, **({"backward": {}} if name.endswith(BACKWARD) else {})}


def plans(name: str, cell: Cell, gpu: Gpu, optimizers: list[str]) -> dict[str, Plan]:
    """{optimizer: plan} in order; on Linux each in a process of its own, as many at once as there are cores."""
    cells = [dataclasses.replace(cell, optimizer=optimizer_settings(optimizer)) for optimizer in optimizers]
    arguments = ([name] * len(cells), cells, [gpu] * len(cells))
    at_once = min(len(cells), os.cpu_count() or 1)
    if at_once == 1 or sys.platform != "linux":
        return dict(zip(optimizers, map(one_plan, *arguments)))
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("fork")) as pool:
        return dict(zip(optimizers, pool.map(one_plan, *arguments)))


def one_plan(name: str, cell: Cell, gpu: Gpu) -> Plan:
    """The plan of one optimizer; a stranger's model whose step cannot be traced is Misuse, like all else about it."""
    with (
        _hub.one_line(name, "a step of it cannot be traced") if target_model.is_hub(name) else contextlib.nullcontext()
    ):
        return throughput.plan(target_model.find(name), cell, gpu)


def answer(arguments) -> str:
    """Text or JSON for the parsed arguments of `lowmem plan MODEL`."""
    gpu = hardware.find(arguments.gpu)
    cell = Cell(
        optimizer={},
        seq_len=arguments.seq_len or 1,
        precision=arguments.precision,
        attention=arguments.attention,
        checkpointing=arguments.checkpointing,
        gpus=arguments.gpus,
        zero=arguments.zero,
        tensor_parallel=arguments.tensor_parallel,
        offload=arguments.offload,
    )
    asked = arguments.optimizer or usual(cell)
    for name in asked:  # before anything is built
        optimizer_settings(name)
    check_settings(cell)
    if arguments.precision == "master" and set(asked) & {"lomo", "adalomo"}:
        raise Misuse("precision master: LOMO keeps no fp32 copy; use --precision bf16 or mixed")
    model = target_model.find(arguments.model)
    attention = cell.attention if model.fused else "eager"
    cell = dataclasses.replace(cell, seq_len=arguments.seq_len or min(2048, model.longest), attention=attention)
    optimizers = list(dict.fromkeys([BASE, *asked]))
    if sys.stderr.isatty():
        print(f"lowmem: tracing a step of {model.name} with {', '.join(optimizers)} ...", file=sys.stderr)
    found = plans(arguments.model, cell, gpu, optimizers)
    if arguments.batch:
        check_batch(model, cell, gpu, found, asked[0], arguments.batch)
    if arguments.json:
        return json.dumps(as_json(model, cell, gpu, found), indent=1)
    return "\n".join(
        [*heading(model, cell, gpu), "", *table(found, cell, gpu), "", *remarks(model, cell, gpu, found, asked)]
    )


def usual(cell: Cell) -> list[str]:
    """Optimizers compared where none is named: without LOMO where an update inside backward is refused (accountant.py)."""
    refused = cell.precision == "master" or (cell.zero == 1 and cell.data_parallel > 1)
    return [name for name in USUAL if not (refused and name == "lomo")]


def check_batch(model: Target, cell: Cell, gpu: Gpu, found: dict[str, Plan], name: str, batch: int) -> None:
    """Misuse, naming the largest batch that fits, when the batch asked for does not."""
    best = found[name].batch
    if best is not None and batch <= best:
        return
    need = account(model, dataclasses.replace(cell, optimizer=optimizer_settings(name), batch=batch)).peak
    if need <= gpu.usable:
        return  # the search ends at throughput.MOST, this GPU does not
    fits = advice(model, cell, gpu, name) if best is None else f"the largest that fits: --batch {best}"
    if best == throughput.MOST:
        fits = f"--batch {best} fits"
    raise Misuse(
        f"batch {batch} with {name} needs {need / GIB:.1f} GiB per GPU, {gpu.name} has {gpu.usable / GIB:.1f} usable; {fits}"
    )


def advice(model: Target, cell: Cell, gpu: Gpu, name: str) -> str:
    """What would make one sequence fit with some memory to spare, from the least change to the largest."""
    named = {"optimizer": optimizer_settings(name), "batch": 1}
    low = {"precision": "bf16"} if cell.precision != "bf16" else {}
    saved = {"checkpointing": True}
    inside = [] if cell.zero == 1 and cell.data_parallel > 1 else ["lomo", f"adam_mini{BACKWARD}"]
    steps = [
        ("--checkpointing", saved),
        ("--precision bf16", low),
        ("--precision bf16 --checkpointing", {**low, **saved}),
    ]
    for way in inside:
        flags = f"--precision bf16 --checkpointing --optimizer {way}"
        steps.append((flags, {**low, **saved, "optimizer": optimizer_settings(way)}))
    gpus = cell.gpus
    while gpus < MOST_GPUS_TRIED:
        gpus *= 2
        steps.append((f"--checkpointing --gpus {gpus}", {**saved, "gpus": gpus, "zero": 3}))
    for flags, change in steps:
        if all(getattr(cell, key, None) == value for key, value in change.items()):
            continue
        wanted = dataclasses.replace(cell, **{**named, **change})
        with contextlib.suppress(Misuse):  # this combination is none
            if account(model, wanted).peak <= HEADROOM * gpu.usable:
                return f"one sequence fits with {flags}"
    return "nothing tried fits: use a GPU with more memory"


def heading(model: Target, cell: Cell, gpu: Gpu) -> list[str]:
    """What is planned, in words."""
    lines = [
        f"{model.name}: {model.parameters() / 1e9:.2f} B parameters, {model.depth} layers, {cell.seq_len} tokens per sequence"
    ]
    split = SPLIT[cell.zero] if cell.data_parallel > 1 else "one GPU holds everything"
    if cell.tensor_parallel > 1:
        split += f"; layers split over {cell.tensor_parallel} (tensor parallelism)"
    lines.append(f"{cell.gpus} x {gpu.name}, {gpu.usable / GIB:.1f} GiB usable each; {split}")
    extras = ["activation checkpointing"] * cell.checkpointing + ["moments in host memory"] * cell.offload
    how = f"{cell.attention} attention" + ("" if model.fused else " (it has no fused one)")
    lines.append("; ".join([PRECISIONS[cell.precision], how, *extras]))
    return lines


def table(found: dict[str, Plan], cell: Cell, gpu: Gpu) -> list[str]:
    """Memory at one sequence per GPU, then the largest batch with its speed, time and energy."""
    width = max(12, *(len(name) + 1 for name in found))
    left = f"{'':<{width}}{'at 1 sequence per GPU, GiB':^59}  largest batch that fits"
    head = f"{'optimizer':<{width}}{'peak':>8}" + "".join(f"{part:>{WIDTHS.get(part, 9)}}" for part in PARTS)
    head += f"{'batch':>9}{'GiB':>8}{'tokens/s':>11}{'1 B tokens':>12}{'energy':>10}"
    lines = [left, head]
    for name, plan in found.items():
        sizes = [sum(plan.single.most[role] for role in roles) / GIB for roles in PARTS.values()]
        row = f"{name:<{width}}{plan.single.peak / GIB:>8.1f}"
        row += "".join(f"{x:>{WIDTHS.get(part, 9)}.1f}" for part, x in zip(PARTS, sizes))
        if plan.batch is None:
            lines.append(f"{row}{'none':>9}")
            continue
        speed = plan.largest_speed
        batch = f"{plan.batch}{'+' if plan.batch == throughput.MOST else ''}"
        energy = f"{speed.kilowatt_hours(BUDGET, gpu, cell.gpus):,.0f} kWh"
        hours = f"{speed.hours(BUDGET):,.1f} h"
        lines.append(
            f"{row}{batch:>9}{plan.largest.peak / GIB:>8.1f}{speed.tokens_per_s:>11,.0f}{hours:>12}{energy:>10}"
        )
    return lines


def remarks(model: Target, cell: Cell, gpu: Gpu, found: dict[str, Plan], asked: list[str]) -> list[str]:
    """What the table says, in sentences, and what it rests on."""
    lines, tight = [], []
    base = found[BASE]
    for name, plan in found.items():
        if name == BASE:
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
    first = found[asked[0]]
    if first.batch is None:
        lines.append(f"{asked[0]} does not fit: {advice(model, cell, gpu, asked[0])}.")
    if cell.precision in ("mixed", "fp32") and not cell.offload:
        copy = base.single.most["optimizer_state"] / 2 / GIB  # as large as one of the two moments, split as they are
        lines.append(
            f"AdamW is one fused kernel here; torch's default on a GPU (foreach) holds {copy:.1f} GiB more during its step."
        )
    lines.append(
        "Simulated, no GPU was used. Peaks come from tracing the real step, and were within 1 % of what an independent run of\n"
        "Llama2-7B on 2 x A100 measured; the parts are each at their most, which is never all at once. Speeds come from a\n"
        "roofline model without the delays of Python and allocator, and tend to be too high (see Table 2 of Adam-mini in the\n"
        f"report). {hardware.OUTSIDE:g} GiB is set aside for CUDA; energy is at board power."
    )
    if gpu.calibrated:
        lines.append(f"{gpu.name}: {gpu.calibrated}.")
    return lines


def as_json(model: Target, cell: Cell, gpu: Gpu, found: dict[str, Plan]) -> dict:
    """Everything as plain values: bytes, seconds, tokens per second."""

    def memory(of: Account) -> dict:
        return {"peak_bytes": of.peak, "parts": of.parts, "most": of.most, "phase": of.phase, "host_bytes": of.host}

    rows = {}
    for name, plan in found.items():
        largest = None
        if plan.batch is not None:
            rate = plan.largest_speed
            largest = {"batch": plan.batch, **memory(plan.largest), "step_seconds": rate.seconds}
            largest |= {"tokens_per_s": rate.tokens_per_s, "hours_per_1e9_tokens": rate.hours(BUDGET)}
            largest |= {"kwh_per_1e9_tokens": rate.kilowatt_hours(BUDGET, gpu, cell.gpus), "limits": rate.limits}
        one = {**memory(plan.single), "tokens_per_s": plan.single_speed.tokens_per_s}
        rows[name] = {"fits": plan.batch is not None, "one_sequence": one, "largest": largest}
    settings = {
        key: value
        for key, value in dataclasses.asdict(cell).items()
        if key not in ("optimizer", "batch", "device", "official")
    }
    return {
        "simulated": True,
        "model": {"name": model.name, "parameters": model.parameters(), "layers": model.depth},
        "gpu": {"name": gpu.name, "usable_bytes": int(gpu.usable), "calibrated": gpu.calibrated},
        "settings": settings,
        "optimizers": rows,
    }
