"""How long a step takes on a GPU that is not here: a roofline for every operation, and links that work beside it.

An operation takes the longer of its arithmetic and its memory traffic (Williams et al., doi 10.1145/1498765.1498785).
A stage of the step (forward, backward, update) takes the longest of three: its kernels in turn, starting them one by
one from Python, and moving its bytes between GPUs, which overlaps with computing as fully_shard arranges it. Not
modelled: allocator retries near full memory, the network between machines, data loading.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lowmem.memory.accountant import MemoryEstimate, TrainingSetup, estimate_memory
from lowmem.memory.hardware import DTENSOR, LAUNCH, LINK, MATMUL, STREAM, Gpu
from lowmem.memory.operation_counts import OperationCounts
from lowmem.memory.target_model import Target

MOST = 4096  # sequences per GPU that a search for the largest batch goes up to


@dataclasses.dataclass(frozen=True)
class Speed:
    """seconds per step and of its stages; tokens per second over all GPUs; limits: what each stage waits for."""

    seconds: float
    stages: dict[str, float]
    limits: dict[str, str]
    tokens_per_s: float

    def hours(self, tokens: float) -> float:
        """Hours that so many tokens take."""
        return tokens / self.tokens_per_s / 3600

    def kilowatt_hours(self, tokens: float, gpu: Gpu, gpus: int) -> float:
        """At board power, which is what a busy GPU draws at most."""
        return self.hours(tokens) * gpu.watts * gpus / 1000


def speed(work: OperationCounts, cell: TrainingSetup, gpu: Gpu) -> Speed:
    """Speed of a step whose work was counted under that cell."""
    exact = gpu.flops * MATMUL / 8  # fp32 products run outside 16-bit tensor cores
    rates = {"matmul": exact if cell.precision == "fp32" else gpu.flops * MATMUL, "fp32 matmul": exact}
    ranks = {"data": cell.data_parallel, "tensor": cell.tensor_parallel, "expert": cell.expert_parallel}
    on_dtensors = cell.official and cell.gpus > 1  # our own optimizers work on the local tensors behind them
    times: dict[str, dict[str, float]] = {}
    for (stage, kind, amount, *rest), count in work.items():
        of_stage = times.setdefault(stage, {"compute": 0.0, "launches": 0.0, "link": 0.0})
        if kind == "link":
            n = ranks[rest[0]]
            of_stage["link"] += count * amount * (n - 1) / n / (gpu.link * LINK)
            continue
        traffic = rest[0] if kind in rates else amount
        arithmetic = amount / rates[kind] if kind in rates else 0.0
        of_stage["compute"] += count * max(arithmetic, traffic / (gpu.stream * STREAM))
        of_stage["launches"] += count * (DTENSOR if on_dtensors and stage == "update" else LAUNCH)
    stages = {stage: max(found.values()) for stage, found in times.items()}
    limits = {stage: max(found, key=found.get) for stage, found in times.items()}
    seconds = sum(stages.values())
    return Speed(seconds, stages, limits, cell.accumulate * cell.batch * cell.seq_len * cell.data_parallel / seconds)


def fitted_link(work: OperationCounts, cell: TrainingSetup, gpu: Gpu, tokens_per_s: float) -> float:
    """The link's bytes/s at which a step would have this speed, for cells whose stages all wait for the link."""
    step = cell.batch * cell.seq_len * cell.data_parallel / tokens_per_s
    local = speed(work, cell, dataclasses.replace(gpu, link=float("inf")))
    moved = sum(
        count * key[2] * (cell.data_parallel - 1) / cell.data_parallel
        for key, count in work.items()
        if key[1] == "link"
    )
    return moved / (step - local.stages["update"]) / LINK


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a cell costs at one sequence per GPU and at the largest batch that fits (None: not even one does)."""

    single: MemoryEstimate
    single_speed: Speed
    batch: int | None
    largest: MemoryEstimate | None
    largest_speed: Speed | None


def plan(target: Target, cell: TrainingSetup, gpu: Gpu) -> Plan:
    """Account for one sequence, then find the largest batch that fits the GPU. Raises Misuse as estimate_memory does."""
    cells = {1: dataclasses.replace(cell, batch=1)}
    accounts = {1: estimate_memory(target, cells[1])}

    def peak(batch: int) -> int:
        if batch not in accounts:
            cells[batch] = dataclasses.replace(cell, batch=batch)
            accounts[batch] = estimate_memory(target, cells[batch])
        return accounts[batch].peak

    grows = accounts[1].parts["activations"] + accounts[1].parts["temporaries"]  # nearly all of it with the batch
    best = largest_batch(peak, gpu.usable, grows)
    found = {n: speed(accounts[n].work, cells[n], gpu) for n in {1, best} - {None}}
    return Plan(accounts[1], found[1], best, accounts.get(best), found.get(best))


def largest_batch(peak: Callable[[int], int], usable: float, slope: float, most: int = MOST) -> int | None:
    """The largest batch up to `most` with peak(batch) <= usable; None if one sequence does not fit.

    slope: a first guess of the bytes that a further sequence takes. The peak is the largest of several straight lines in
    the batch, so a line through two batches lies below it beyond them: what it says does not fit, does not.
    """
    if peak(1) > usable:
        return None
    low, high = 1, most + 1  # low fits, high does not
    while high - low > 1:
        guess = low + int((usable - peak(low)) / max(slope, 1))
        guess = min(max(guess, low + 1), high - 1)
        slope = (peak(guess) - peak(low)) / (guess - low)
        if peak(guess) <= usable:
            low = guess
            high = min(high, low + int((usable - peak(low)) / max(slope, 1)) + 1)
        else:
            high = guess
    return low
