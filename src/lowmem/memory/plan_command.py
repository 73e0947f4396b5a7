"""The answer of `lowmem plan MODEL`: does it fit, at which batch, how fast, and what which optimizer buys."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from lowmem.errors import Misuse, nearest
from lowmem.memory import hardware, target_model, throughput
from lowmem.memory.accountant import Account, Cell, account
from lowmem.memory.hardware import Gpu
from lowmem.memory.parts import PARTS
from lowmem.memory.target_model import Target
from lowmem.memory.throughput import Plan
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
    return throughput.plan(target_model.find(name), cell, gpu)


def answer(arguments) -> str:
    """Text or JSON for the parsed arguments of `lowmem plan MODEL`."""
    model, gpu = target_model.find(arguments.model), hardware.find(arguments.gpu)
    cell = Cell(
        optimizer={},
        seq_len=arguments.seq_len or min(2048, model.longest),
        precision=arguments.precision,
        attention=arguments.attention,
        checkpointing=arguments.checkpointing,
        gpus=arguments.gpus,
        zero=arguments.zero,
        tensor_parallel=arguments.tensor_parallel,
        offload=arguments.offload,
    )
    asked = arguments.optimizer or usual(cell)
    if arguments.precision == "master" and set(asked) & {"lomo", "adalomo"}:
        raise Misuse("precision master: LOMO keeps no fp32 copy; use --precision bf16 or mixed")
    found = plans(arguments.model, cell, gpu, list(dict.fromkeys([BASE, *asked])))
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
    if best is None or batch > best:
        wanted = dataclasses.replace(cell, optimizer=optimizer_settings(name), batch=batch)
        need = account(model, wanted).peak / GIB
        fits = f"the largest that fits: --batch {best}" if best else advice(model, cell, gpu, name)
        raise Misuse(
            f"batch {batch} with {name} needs {need:.1f} GiB per GPU, {gpu.name} has {gpu.usable / GIB:.1f} usable; {fits}"
        )


def advice(model: Target, cell: Cell, gpu: Gpu, name: str) -> str:
    """What would make one sequence fit: checkpointing, then LOMO, then more GPUs; the first that works."""
    base = dataclasses.replace(cell, optimizer=optimizer_settings(name), batch=1)
    saved = dataclasses.replace(base, checkpointing=True)
    if not cell.checkpointing and account(model, saved).peak <= gpu.usable:
        return "one sequence fits with --checkpointing"
    gpus = cell.gpus
    while gpus < 64:
        gpus *= 2
        if account(model, dataclasses.replace(saved, gpus=gpus, zero=3)).peak <= gpu.usable:
            return f"one sequence fits with --checkpointing --gpus {gpus}"
    return "nothing tried fits: use a GPU with more memory, or --precision bf16 --optimizer lomo"


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
    lines.append("; ".join([PRECISIONS[cell.precision], f"{cell.attention} attention", *extras]))
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
    lines = []
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
