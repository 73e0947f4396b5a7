"""What the arguments of `lowmem plan MODEL` ask for, refused where it is invalid for every model; without PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses

from lowmem.errors import Misuse
from lowmem.memory import hardware, model_names
from lowmem.memory.adapter_settings import EVERY, Adapters
from lowmem.memory.cell import TrainingSetup, check_settings, inside_backward
from lowmem.memory.hardware import Gpu
from lowmem.memory.optimizer_names import BACKWARD, FOREIGN, HAVE_INT8, INT8, optimizer_settings
from lowmem.optim import names

USUAL = ("adamw", "adam_mini", "lomo")
ALL = "all"


def of(arguments) -> tuple[Gpu, TrainingSetup, list[str]]:
    """(GPU, settings of the step, optimizers); also checks the model's name."""
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
    model_names.check(arguments.model)
    return gpu, cell, asked


def adapters_of(arguments) -> Adapters | None:
    """LoRA as the arguments ask for it; Misuse where they speak of it without --lora."""
    if arguments.lora is None:
        for flag, value in (("base", arguments.base), ("targets", arguments.targets), ("fsdp1", arguments.fsdp1)):
            if value not in (None, False):
                raise Misuse(f"--{flag} needs --lora RANK; weights that are trained stay whole")
        return None
    targets = EVERY if arguments.targets in (None, EVERY) else tuple(arguments.targets.split(","))
    return Adapters(rank=arguments.lora, targets=targets, base="16" if arguments.base is None else arguments.base)


def usual(cell: TrainingSetup, state: str | None = None) -> list[str]:
    """Optimizers compared where none is named: without LOMO where an update inside backward is refused (accountant.py)."""
    if cell.adapters is not None:
        return [with_state(USUAL[0], state)]
    refused = cell.precision == "master" or cell.accumulate > 1 or (cell.zero == 1 and cell.data_parallel > 1)
    found = [name for name in USUAL if not (refused and name == "lomo")]
    return [with_state(name, state) if name in HAVE_INT8 else name for name in found]


def every(cell: TrainingSetup) -> list[str]:
    """All optimizers and ways that can be planned for a cell, for --optimizer all: ours, each with an 8-bit moment and inside
    backward where it can be, then those of other packages."""
    ways = ("", INT8, BACKWARD, f"{INT8}{BACKWARD}") if cell.precision == "bf16" else ("", BACKWARD)
    never_inside = cell.precision == "master" or (cell.zero == 1 and cell.data_parallel > 1)
    found = []
    for name in [*(plain + way for plain in names() for way in ways), *FOREIGN]:
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
