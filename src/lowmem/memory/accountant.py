"""Peak memory of a training step, by component and per rank, without the memory and without a GPU.

The real model, loss, optimizer and sharding run on fake tensors, which have shapes and no data (PyTorch's FakeTensor),
while tracker.py counts. A layer costs what its neighbour costs, so two shallow models give the deep one: every phase of
a step (forward of the first layer, backward of the loss, ...) is a line in the number of layers, and the step's peak is
the largest phase. One and two layers mislead, because the first and the last layer are then the same; two and three
serve, or four and five under fully_shard, where layers overlap. Not counted: what lies outside PyTorch's allocator (CUDA
context, NCCL), see hardware.py, and fragmentation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from lowmem.errors import Misuse
from lowmem.memory import adapters, fake_kernels, fake_ranks, foreign_optimizers, optimizer_names
from lowmem.memory.cell import TrainingSetup, check_settings
from lowmem.memory.official_optimizers import Official
from lowmem.memory.operation_counts import OperationCounts, extrapolated
from lowmem.memory.target_model import Target
from lowmem.memory.tracker import ROLES, Tracker
from lowmem.optim import Lion
from lowmem.optim._factory import make
from lowmem.optim.core import cpu_kernel, data_parallel
from lowmem.optim.core.fused_backward import FusedBackward
from lowmem.optim.core.rule import Update

FAKE = getattr(FakeTensorMode.__torch_dispatch__, "__wrapped__", FakeTensorMode.__torch_dispatch__)


class Shapes(FakeTensorMode):
    """Fake tensors without the check that keeps each operation from torch.compile: nothing is compiled here."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is fake_kernels.GROUPED and args[0].dtype != torch.bfloat16:
            return fake_kernels.grouped_product(*args, **(kwargs or {}))
        return FAKE(self, operation, types, args, kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank. peak and parts: at the worst moment of a step; phase: when that is; phases: the most of each.
    most: the most of each component, whenever that is; they are never all there at once.

    kept: activations alive between forward and backward. host: bytes offloaded to the CPU. depths: layers of the models
    that were traced; more than one means extrapolated. work: what a GPU has to do in the step.
    """

    peak: int
    parts: dict[str, int]
    phase: str
    phases: dict[str, int]
    most: dict[str, int]
    kept: int
    host: int
    depths: tuple[int, ...]
    work: OperationCounts


def estimate_memory(target: Target, cell: TrainingSetup, full_depth: bool = False) -> MemoryEstimate:
    """Trace shallow models of the target and extrapolate (or trace it at full depth). Raises Misuse for bad settings."""
    check(target, cell)
    period = math.lcm(target.period, cell.checkpoint_every)
    few = target.lead + (4 if fake_ranks.is_sharded(cell) else 2) * period  # fully_shard gathers the next layer
    few += (target.depth - few) % period  # what is left is whole periods
    more = few + period
    if full_depth or target.depth <= more:
        return summary([trace(target, cell, target.depth)], (target.depth,), 0.0)
    share = (target.depth - few) / period
    return summary([trace(target, cell, depth) for depth in (few, more)], (few, more), share)


def summary(traces: list[tuple[dict, OperationCounts]], depths: tuple[int, ...], share: float) -> MemoryEstimate:
    """One account from the trace of one model, or of two: first + share * (second - first), phase by phase."""
    (first, few), (second, more) = traces[0], traces[-1]
    phases = {
        phase: {role: round(parts[role] + share * (second[phase][role] - parts[role])) for role in ROLES}
        for phase, parts in first.items()
        if phase in second
    }
    kept = phases.pop("kept")["activations"]
    totals = {phase: sum(parts[role] for role in ROLES if role != "host") for phase, parts in phases.items()}
    worst = max(totals, key=totals.get)
    parts = {role: size for role, size in phases[worst].items() if role != "host"}
    most = {role: max(of_phase[role] for of_phase in phases.values()) for role in parts}
    host, work = phases[worst]["host"], extrapolated(few, more, share)
    return MemoryEstimate(totals[worst], parts, worst, totals, most, kept, host, depths, work)


def check(target: Target, cell: TrainingSetup) -> None:
    """Check the settings against each other and the model; Misuse names the nearest valid ones."""
    check_settings(cell)
    if cell.checkpoint_every > target.depth:
        raise Misuse(f"checkpoint-every {cell.checkpoint_every}: {target.name} has {target.depth} layers")
    if cell.document is not None and cell.document > cell.seq_len:
        raise Misuse(f"document-tokens {cell.document}: longer than the sequence they are packed into, {cell.seq_len}")
    if cell.seq_len > target.longest:
        raise Misuse(
            f"{target.name} has {target.longest} positions, not {cell.seq_len}; use --seq-len {target.longest}"
        )


def trace(target: Target, cell: TrainingSetup, depth: int) -> tuple[dict[str, dict[str, int]], OperationCounts]:
    """{phase: {role: bytes}} and the work of a model of `depth` layers, in a step that finds the state made.

    "kept" is what is alive between forward and backward; the other phases are the most that was alive during them.
    """
    model = target.build(depth, cell.attention)
    twin = without_buffers(target.build(depth, cell.attention).float()) if cell.precision == "master" else None
    model = model.to(torch.bfloat16 if cell.precision in ("bf16", "master") else torch.float32)
    if cell.adapters is not None:
        model = adapters.attach(model, cell.adapters, fake_ranks.is_sharded(cell))
    with (
        uncollected(),
        fake_ranks.pretend(cell) as mesh,
        Shapes(allow_non_fake_inputs=True),
        fake_kernels.of(cell),
        Tracker() as tracker,
    ):
        tokens = torch.empty(cell.batch, cell.seq_len, dtype=torch.int64)
        tracker.mark([tokens], "activations")
        model = fake_ranks.shard(place(model), target, cell, mesh)
        tracker.mark(model.parameters(), "parameters")
        if cell.checkpointing:
            for layer in target.layers(model)[:: cell.checkpoint_every]:
                layer.forward = functools.partial(recomputed, tracker, cell, layer.forward)
        held = [] if cell.fsdp1 and cell.adapters is not None and fake_ranks.is_sharded(cell) else None
        watch(tracker, model, target.layers(model), held)
        step = stepper(tracker, target, cell, mesh, model, twin, tokens, held)
        tracker.restart()
        step()
        return {phase: parts for phase, parts in tracker.peaks.items() if phase != "setup"}, tracker.work


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, cycles are not looked for: when that happens depends on what ran before, and it takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def place(model: nn.Module) -> nn.Module:
    """A meta model on the CPU, in place, keeping tied weights tied (to_empty would untie them)."""
    known: dict[int, Tensor] = {}

    def placed(x: Tensor) -> Tensor:
        if id(x) not in known:
            new = torch.empty(x.shape, dtype=x.dtype, device="cpu")
            known[id(x)] = nn.Parameter(new, requires_grad=x.requires_grad) if isinstance(x, nn.Parameter) else new
        return known[id(x)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, x in tensors.items():
                tensors[name] = None if x is None else placed(x)
    return model


def without_buffers(model: nn.Module) -> nn.Module:
    """The model's weights alone, for the fp32 copy that an optimizer keeps."""
    for module in model.modules():
        module._buffers.clear()
    return model


def recomputed(tracker: Tracker, cell: TrainingSetup, forward, *args, **kwargs):
    """A layer's forward under activation checkpointing; what is made anew in backward counts as activations."""

    def run(*args, **kwargs):  # inside backward, torch's function modes are off: the kernels are chosen anew
        with tracker.during(tracker.phase, "activations"), fake_kernels.of(cell):
            return forward(*args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def watch(tracker: Tracker, model: nn.Module, layers: list[nn.Module], held: list | None) -> None:
    """Name phases as forward and backward pass the first and the last layer, and mark gradients as they are complete.

    held: the layers' inputs and their gradients are put there, until the next forward.
    """
    names = {0: "first layer", len(layers) - 1: "last layer"}

    def entering(i: int, _module, args, kwargs) -> None:
        if tracker.phase.startswith("forward"):
            tracker.phase = f"forward, {names.get(i, 'a layer')}"
            source = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad), None)
            if held is not None and source is not None:
                if i == 0:
                    held.clear()
                held.append(source.detach())
                source.register_hook(held.append)
            if i == 0 and source is not None:
                source.register_hook(lambda _: backward("embedding"))

    def leaving(i: int, _module, _args, output) -> None:
        if tracker.phase.startswith("forward"):
            if i == len(layers) - 1:
                tracker.phase = "forward, loss"
            output = output if isinstance(output, Tensor) else output[0]
            if output.requires_grad:  # a model may run its first passes without
                output.register_hook(lambda _: backward(names.get(i, "a layer")))

    def backward(place: str) -> None:
        tracker.phase = f"backward, {place}"

    for i, layer in enumerate(layers):
        layer.register_forward_pre_hook(functools.partial(entering, i), prepend=True, with_kwargs=True)
        layer.register_forward_hook(functools.partial(leaving, i))
    for p in model.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: tracker.mark([p.grad], "gradients"))


def stepper(
    tracker: Tracker, target: Target, cell: TrainingSetup, mesh, model: nn.Module, twin: nn.Module | None, tokens, held
):
    """A function that does one training step: forward, backward, update, gradients dropped. held: dropped after backward."""
    if cell.official:
        optimizer = Official(model, **cell.optimizer)
    elif cell.optimizer["name"] in optimizer_names.FOREIGN:
        optimizer = foreign_optimizers.Foreign(model, tracker=tracker, clip=cell.clip, **cell.optimizer)
    else:
        with warnings.catch_warnings():
            if cell.adapters is not None:
                warnings.simplefilter("ignore")  # these adapters are stand-ins
            optimizer = make(
                model if twin is None else fake_ranks.shard(place(twin), target, cell, mesh), **cell.optimizer
            )
    fused, inner = isinstance(optimizer, FusedBackward), getattr(optimizer, "inner", optimizer)
    if twin is not None:
        if fused:
            raise Misuse("precision master: an optimizer inside backward keeps no fp32 copy; use bf16 or mixed")
        tracker.mark(twin.parameters(), "optimizer_state")
    stand_in(tracker, inner, cell)
    fake_ranks.share_heads(model, cell)
    updater = fake_ranks.state_sharded(optimizer, cell)
    counters = "optimizer_state" if cell.device == "cpu" else "host"  # steps are counted on the host
    with tracker.during("setup", counters):
        inner.prepare()
    tracker.mark(state_tensors(inner), "host" if getattr(inner, "paged", False) else "optimizer_state")
    if cell.offload:  # scales, block scalars, rows and columns stay on the GPU
        tracker.mark(state_tensors(inner, lambda p, key: not inner.keeps_whole(p, key)), "host")
    sharded = fake_ranks.is_sharded(cell)
    averaging = cell.data_parallel > 1 and cell.zero == 0
    if averaging and fused:
        optimizer.process_group = mesh["data"].get_group()

    def loss_of() -> Tensor:
        with tracker.during("forward, embedding", "activations"), computing(cell):
            loss = target.loss(model, tokens)
            tracker.peaks["kept"] = dict(tracker.live)
        return loss

    def step() -> None:
        if fused and sharded:
            with tracker.during("backward, loss", "temporaries"):
                optimizer.backward(loss_of)  # gathered weights are gone when a kept graph would run again
        else:
            for _ in range(min(cell.accumulate, 2)):  # from the second on, gradients are there already
                loss = loss_of()
                with tracker.during("backward, loss", "temporaries"):
                    optimizer.backward(loss) if fused else loss.backward()
            if held:
                held.clear()
            if averaging and not fused:
                for p in (p for p in model.parameters() if p.grad is not None):
                    data_parallel.average(p.grad, mesh["data"].get_group())
            del loss
        with tracker.during("update", "temporaries"):
            if twin is None:
                updater.step()
            else:
                update_through(inner, model, twin)
        (model if twin is not None else updater).zero_grad()
        if cell.accumulate > 2:
            tracker.work.repeat(("forward", "backward"), cell.accumulate / 2)

    return step


def computing(cell: TrainingSetup) -> contextlib.AbstractContextManager:
    """Autocast where fp32 weights compute in bf16; fully_shard has a policy of its own for that."""
    mixed = cell.precision == "mixed" or (cell.adapters is not None and cell.adapters.autocast)
    mixed = mixed and not fake_ranks.is_sharded(cell)
    return torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()


def state_tensors(optimizer: torch.optim.Optimizer, of=lambda p, key: True) -> Iterator[Tensor]:
    """The tensors of the optimizer's state for which of(parameter, key) holds, but no step counters."""
    for p, state in optimizer.state.items():
        yield from (x for key, x in state.items() if isinstance(x, Tensor) and key != "step" and of(p, key))


@torch.no_grad()
def update_through(optimizer, model: nn.Module, twin: nn.Module) -> None:
    """Update fp32 copies from 16-bit gradients, one tensor after the other, and round them back into the weights."""
    groups = {q: group for group in optimizer.param_groups for q in group["params"]}
    for p, q in zip(model.parameters(), twin.parameters()):
        if p.grad is not None:
            optimizer.update([(groups[q], q, p.grad.float())])
            p.copy_(q)


def stand_in(tracker: Tracker, optimizer, cell: TrainingSetup) -> None:
    """What fake tensors on a CPU cannot show: kernels in C or on a GPU update tensors in place, in one pass; offloaded
    moments come over to be updated."""
    if cell.official or isinstance(optimizer, foreign_optimizers.Foreign):
        return  # simulated operation by operation

    def in_c(optimizer, updates: list[Update]) -> list[Update]:
        # Seven passes: p, g, m and v are read, p, m and v written; Lion has no v.
        exact = [update for update in updates if update.param.dtype == torch.float32]
        for update in exact:
            tracker.work.touched(tracker.stage, update.param, 5 if isinstance(optimizer, Lion) else 7)
        return [update for update in updates if update.param.dtype != torch.float32]

    def with_offloaded_moments(optimizer, updates: list[Update]) -> list[Update]:
        for update in updates:
            blocks = update.layout.blocks
            brought = {key: x if optimizer.is_small(key, blocks) else x.clone() for key, x in update.state.items()}
            optimizer.by_stages(update._replace(state=brought))
        return []

    if cell.device == "cpu" and cpu_kernel.in_c in optimizer.ways_on_cpu and cpu_kernel.library() is not None:
        optimizer.ways_on_cpu = (in_c,)
    if cell.device == "gpu" and not cell.offload and isinstance(optimizer, fake_kernels.WITH_KERNELS):
        optimizer.ways_on_cpu = (functools.partial(fake_kernels.on_gpu, tracker),)
    if cell.offload:
        optimizer.ways_on_cpu = (*optimizer.ways_on_cpu, with_offloaded_moments)
