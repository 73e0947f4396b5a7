"""The answer of `lowmem plan MODEL`: does it fit, at which batch, how fast, and what which optimizer buys."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from lowmem.errors import Misuse, nearest
from lowmem.memory import foreign_optimizers, hardware, plan_json, plan_text, target_model, throughput
from lowmem.memory.accountant import estimate_memory
from lowmem.memory.adapters import EVERY, Adapters
from lowmem.memory.cell import TrainingSetup, check_settings, inside_backward
from lowmem.memory.hardware import Gpu
from lowmem.memory.target_model import Target
from lowmem.memory.throughput import Plan
from lowmem.models import _hub
from lowmem.optim import names

GIB = 2**30
USUAL = ("adamw", "adam_mini", "lomo")
BACKWARD = "+backward"
INT8 = "+int8"
ALL = "all"
HAVE_INT8 = ("adam_mini", "adamw", "lion")
MOST_GPUS_TRIED = 64


def optimizer_settings(name: str) -> dict:
    """Settings for optim.make from a name on the command line: adam_mini, adam_mini+int8 with a first moment of one byte,
    adam_mini+backward to run inside backward, adam_mini+int8+backward."""
    plain, *ways = name.split("+")
    inside, eight_bit = BACKWARD[1:] in ways, INT8[1:] in ways
    known = (*names(), *foreign_optimizers.NAMES)
    if plain == "ao_adamw_offload":
        raise Misuse(
            "ao_adamw_offload: torchao steps it on the CPU, whose speed is not modelled; see --offload of our own"
        )
    if plain not in known:
        raise Misuse(f"unknown optimizer {name!r}{nearest(plain, known)}")
    if len(ways) != inside + eight_bit:  # an unknown one, or one twice
        raise Misuse(f"optimizer {name!r}: a name may end in {INT8} and in {BACKWARD}, each once")
    if inside and plain in foreign_optimizers.NAMES:
        raise Misuse(f"{plain} is not simulated inside backward; drop {BACKWARD}, or use adamw{BACKWARD}")
    if inside and plain in ("lomo", "adalomo"):
        raise Misuse(f"{plain} runs inside backward already; drop {BACKWARD}")
    if eight_bit and plain not in HAVE_INT8:
        raise Misuse(
            f"{name}: the first moment in 8 bits is for adam_mini, adamw and lion; drop {INT8}, or --state int8"
        )
    settings = {"state_dtype": "int8"} if eight_bit else {}
    return {"name": plain, **settings, **({"backward": {}} if inside else {})}


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
    """The plan of one optimizer; a stranger's model whose step cannot be traced is Misuse, like all else about it."""
    one_line = _hub.in_one_line(name, "a step of it cannot be traced")
    with (
        one_line if target_model.is_hub(name) else contextlib.nullcontext(),
        _hub.silenced("torch._subclasses.fake_tensor", logging.CRITICAL),  # its traceback would stand before our line
    ):
        return throughput.plan(target_model.find(name), cell, gpu)


def answer(arguments) -> str:
    """Text or JSON for the parsed arguments of `lowmem plan MODEL`."""
    gpu, precision = hardware.find(arguments.gpu), arguments.precision
    if precision is None:
        precision = "bf16" if arguments.lora or arguments.state else "mixed"
    cell = TrainingSetup(
        optimizer={},
        batch=arguments.batch or 1,
        seq_len=arguments.seq_len or 1,
        precision=precision,
        attention=arguments.attention,
        checkpointing=arguments.checkpointing,
        gpus=arguments.gpus,
        zero=arguments.zero,
        tensor_parallel=arguments.tensor_parallel,
        expert_parallel=arguments.expert_parallel,
        offload=arguments.offload,
        accumulate=arguments.accumulate,
        adapters=adapters_of(arguments),
        fsdp1=arguments.fsdp1,
        checkpoint_every=arguments.checkpoint_every,
        document=arguments.document_tokens,
    )
    named = [name for one in arguments.optimizer or () for name in (every(cell) if one == ALL else [one])]
    asked = [with_state(name, arguments.state) for name in named] or usual(cell, arguments.state)
    for name in asked:  # before anything is built
        optimizer_settings(name)
    check_settings(cell)
    if cell.precision == "master" and set(asked) & {"lomo", "adalomo"}:
        raise Misuse("precision master: LOMO keeps no fp32 copy; use --precision bf16 or mixed")
    model = target_model.find(arguments.model)
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


def adapters_of(arguments) -> Adapters | None:
    """LoRA as the arguments ask for it; Misuse where they speak of it without --lora."""
    if arguments.lora is None:
        for flag, value in (("base", arguments.base), ("targets", arguments.targets), ("fsdp1", arguments.fsdp1)):
            if value not in (None, False):
                raise Misuse(f"--{flag} belongs to --lora RANK; weights that are trained stay whole")
        return None
    targets = EVERY if arguments.targets in (None, EVERY) else tuple(arguments.targets.split(","))
    return Adapters(rank=arguments.lora, targets=targets, base="16" if arguments.base is None else arguments.base)


def usual(cell: TrainingSetup, state: str | None = None) -> list[str]:
    """Optimizers compared where none is named: without LOMO where an update inside backward is refused (accountant.py)."""
    if cell.adapters is not None:
        return [with_state(plan_text.BASE, state)]
    refused = cell.precision == "master" or cell.accumulate > 1 or (cell.zero == 1 and cell.data_parallel > 1)
    found = [name for name in USUAL if not (refused and name == "lomo")]
    return [with_state(name, state) if name in HAVE_INT8 else name for name in found]


def every(cell: TrainingSetup) -> list[str]:
    """All optimizers and ways that can be planned for a cell, for --optimizer all: ours, each with an 8-bit moment and inside
    backward where it can be, then those of other packages."""
    ways = ("", INT8, BACKWARD, f"{INT8}{BACKWARD}") if cell.precision == "bf16" else ("", BACKWARD)
    never_inside = cell.precision == "master" or (cell.zero == 1 and cell.data_parallel > 1)
    found = []
    for name in [*(plain + way for plain in names() for way in ways), *foreign_optimizers.NAMES]:
        with contextlib.suppress(Misuse):  # it is none, or not for this cell
            settings = optimizer_settings(name)
            check_settings(dataclasses.replace(cell, optimizer=settings))
            found += [name] * (not (never_inside and inside_backward(settings)))
    return found


def with_state(name: str, state: str | None) -> str:
    """An optimizer's name as --state has it: adam_mini+backward as adam_mini+int8+backward."""
    if state is None or INT8 in name:
        return name
    plain, plus, ways = name.partition("+")
    return f"{plain}{INT8}{plus}{ways}"


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
    gpus = cell.gpus
    while gpus < MOST_GPUS_TRIED:
        gpus *= 2
        steps.append((f"--checkpointing --gpus {gpus}", {**saved, "gpus": gpus, "zero": 3}))
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
