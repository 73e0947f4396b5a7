"""The answer of `lowmem plan MODEL`: does it fit, at which batch, how fast, and what which optimizer buys."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor

from lowmem.errors import Misuse
from lowmem.memory import model_names, plan_json, plan_text, target_model, throughput
from lowmem.memory.accountant import estimate_memory
from lowmem.memory.cell import TrainingSetup
from lowmem.memory.hardware import Gpu
from lowmem.memory.optimizer_names import BACKWARD, INT8, optimizer_settings
from lowmem.memory.target_model import Target
from lowmem.memory.throughput import Plan
from lowmem.models import _hub

GIB = 2**30
MOST_GPUS_TRIED = 64


def plans(name: str, cell: TrainingSetup, gpu: Gpu, optimizers: list[str]) -> dict[str, Plan]:
    """{optimizer: plan} in order; on Linux each in a process of its own, as many at once as there are cores."""
    cells = [dataclasses.replace(cell, optimizer=optimizer_settings(optimizer)) for optimizer in optimizers]
    arguments = ([name] * len(cells), cells, [gpu] * len(cells))
    at_once = min(len(cells), os.cpu_count() or 1)
    if at_once == 1 or sys.platform != "linux":
        return dict(zip(optimizers, map(one_plan, *arguments)))
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("fork")) as pool:
        return dict(zip(optimizers, pool.map(one_plan, *arguments)))


def one_plan(name: str, cell: TrainingSetup, gpu: Gpu) -> Plan:
    """The plan of one optimizer; a third-party model whose step cannot be traced is Misuse, like any other error in it."""
    one_line = _hub.in_one_line(name, "a step of it cannot be traced")
    with (
        one_line if model_names.is_hub(name) else contextlib.nullcontext(),
        _hub.quiet() if model_names.is_hub(name) else contextlib.nullcontext(),
        _hub.silenced("torch._subclasses.fake_tensor", logging.CRITICAL),  # its traceback would precede our line
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # the same
        return throughput.plan(target_model.find(name), cell, gpu)


def answer(arguments, gpu: Gpu, cell: TrainingSetup, asked: list[str]) -> str:
    """Text or JSON for the parsed arguments of `lowmem plan MODEL`, and what plan_asked.py made of them."""
    model = target_model.find(arguments.model)
    if arguments.base is None and (kind := packed(arguments.model)):
        note = f"{arguments.model} is stored in {kind}; planned is the training of whole weights (packed ones: --lora --base)"
        print(f"lowmem: {note}", file=sys.stderr)
    attention = cell.attention if model.fused else "eager"
    cell = dataclasses.replace(cell, seq_len=arguments.seq_len or min(2048, model.longest), attention=attention)
    optimizers = list(dict.fromkeys([plan_text.BASE, *asked]))
    found = plans(arguments.model, cell, gpu, optimizers)
    if arguments.batch:
        check_batch(model, cell, gpu, found, asked[0], arguments.batch)
    if arguments.json:
        return json.dumps(plan_json.as_json(model, cell, gpu, found), indent=1)
    fits = {
        name: advice(model, cell, gpu, name)
        for name in asked[:1]
        if found[name].batch is None and len(found) <= plan_text.MOST_TOLD
    }
    shown = plan_text.markdown if arguments.markdown else plan_text.plain
    return shown(model, cell, gpu, found, fits)


def packed(name: str) -> str:
    """How the weights of a hub's model are quantized, as its configuration says; empty where they are not."""
    found = getattr(_hub.config_of(name), "quantization_config", None) if model_names.is_hub(name) else None
    kind = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(kind or "packed numbers")[:40] if found else ""


def check_batch(model: Target, cell: TrainingSetup, gpu: Gpu, found: dict[str, Plan], name: str, batch: int) -> None:
    """Misuse, naming the largest batch that fits, when the batch asked for does not."""
    best = found[name].batch
    if best is not None and batch <= best:
        return
    need = estimate_memory(model, dataclasses.replace(cell, optimizer=optimizer_settings(name), batch=batch)).peak
    if need <= gpu.usable:
        return  # the search ends at throughput.MOST, this GPU does not
    fits = advice(model, cell, gpu, name) if best is None else f"the largest that fits: --batch {best}"
    if best == throughput.MOST:
        fits = f"--batch {best} fits"
    raise Misuse(
        f"batch {batch} with {name} needs {need / GIB:.1f} GiB per GPU, {gpu.name} has {gpu.usable / GIB:.1f} usable; {fits}"
    )


def advice(model: Target, cell: TrainingSetup, gpu: Gpu, name: str) -> str:
    """What would make one sequence fit with some memory to spare, from the least change to the largest."""
    named = {"optimizer": optimizer_settings(name), "batch": 1}
    low = {"precision": "bf16"} if cell.precision != "bf16" else {}
    saved = {"checkpointing": True}
    steps = [
        ("--checkpointing", saved),
        ("--precision bf16", low),
        ("--precision bf16 --checkpointing", {**low, **saved}),
    ]
    for flags, settings in inside(cell, name):
        steps.append((f"--precision bf16 --checkpointing --optimizer {flags}", {**low, **saved, "optimizer": settings}))
    gpus, narrow = cell.gpus, "--precision bf16 " * bool(low)
    while gpus < MOST_GPUS_TRIED:
        gpus *= 2
        steps.append((f"{narrow}--checkpointing --gpus {gpus}", {**low, **saved, "gpus": gpus, "zero": 3}))
    for flags, change in steps:
        if all(getattr(cell, key, None) == value for key, value in change.items()):
            continue
        wanted = dataclasses.replace(cell, **{**named, **change})
        with contextlib.suppress(Misuse):  # this combination is none
            if estimate_memory(model, wanted).peak <= plan_text.HEADROOM * gpu.usable:
                return f"one sequence fits with {flags}"
    return "nothing tried fits: use a GPU with more memory"


def inside(cell: TrainingSetup, name: str) -> list[tuple[str, dict]]:
    """(flags, settings) of optimizers inside backward that a cell allows: the one asked for in its own ways, then others."""
    if cell.adapters is not None or cell.accumulate > 1 or (cell.zero == 1 and cell.data_parallel > 1):
        return []
    plain = name.partition("+")[0]
    own = [f"{plain}{INT8}{BACKWARD}"] if INT8 in name else [f"{plain}{BACKWARD}", f"{plain}{INT8}{BACKWARD}"]
    found = []
    for way in dict.fromkeys([*own, "lomo", f"adam_mini{BACKWARD}"]):
        flags = f"{way.replace(INT8, '')} --state int8" if INT8 in way else way
        with contextlib.suppress(Misuse):  # it has no such way
            found.append((flags, optimizer_settings(way)))
    return found
