"""The settings of one training step, and which of them are compatible; without PyTorch."""

from __future__ import annotations

import dataclasses

from lowmem.errors import Misuse, nearest
from lowmem.memory import adapter_settings, optimizer_names
from lowmem.memory.adapter_settings import Adapters

PRECISIONS = ("fp32", "bf16", "mixed", "master")
ATTENTION = ("fused", "eager")
MOST_GPUS = 4096
MOST_TOKENS = 1_000_000_000  # per GPU and batch
MOST_BATCHES = 1_000_000  # added up for a step


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """The settings of one training step. batch: sequences per GPU and step.

    precision: "fp32"; "bf16" weights, gradients and moments; "mixed": fp32 weights, gradients and moments, computing in
    bf16; "master": bf16 weights and gradients, fp32 copy and fp32 moments. gpus: all of them; tensor_parallel of them
    share one copy of each activation, the rest are data-parallel. zero: what these split: 0 nothing, 1 optimizer state,
    2 also gradients, 3 also weights (1 is zero1.py, 2 and 3 are fully_shard). offload: moments live in host memory.
    device: "gpu" kernels, or "cpu" as this machine would run it. official: the optimizers of the paper's own runs in
    place of ours, see official_optimizers.py. clip: gradients by their norm before the step of an optimizer of another
    package (foreign_optimizers.py). accumulate: batches whose gradients are added up for one step. adapters: LoRA, perhaps
    over packed weights; what else is trained is nothing. fsdp1: frozen weights split by the older FullyShardedDataParallel,
    whose hooks hold each layer's input and its gradient until backward ends.
    checkpoint_every: with checkpointing, one layer in so many is recomputed. document: tokens of each of the documents that
    are packed into a sequence, between which there is no attention; None: a sequence is one. expert_parallel: data-parallel
    GPUs over which the experts of each layer are divided.
    """

    optimizer: dict
    batch: int = 1
    seq_len: int = 1024
    precision: str = "bf16"
    attention: str = "fused"
    checkpointing: bool = False
    gpus: int = 1
    zero: int = 3
    tensor_parallel: int = 1
    offload: bool = False
    device: str = "gpu"
    official: bool = False
    clip: bool = False
    accumulate: int = 1
    adapters: Adapters | None = None
    fsdp1: bool = False
    checkpoint_every: int = 1
    document: int | None = None
    expert_parallel: int = 1

    @property
    def data_parallel(self) -> int:
        """Number of GPU groups that read different data."""
        return self.gpus // self.tensor_parallel


def check_settings(cell: TrainingSetup) -> None:
    """Check settings that do not depend on the model; Misuse names the nearest valid ones."""
    for key, known in (("precision", PRECISIONS), ("attention", ATTENTION), ("device", ("gpu", "cpu"))):
        if getattr(cell, key) not in known:
            raise Misuse(f"{key} {getattr(cell, key)!r}{nearest(str(getattr(cell, key)), known)}")
    if cell.zero not in (0, 1, 2, 3):
        raise Misuse(f"zero {cell.zero}: stages are 0, 1, 2 and 3")
    if cell.batch < 1 or cell.seq_len < 1 or cell.gpus < 1 or cell.tensor_parallel < 1:
        raise Misuse("batch, seq-len, gpus and tensor-parallel: at least 1 each")
    if cell.batch * cell.seq_len > MOST_TOKENS or cell.accumulate > MOST_BATCHES:
        raise Misuse(
            f"batch {cell.batch} of {cell.seq_len} tokens, {cell.accumulate} added up: at most {MOST_TOKENS:,} tokens per GPU "
            f"and {MOST_BATCHES:,} batches are simulated"
        )
    if cell.document is not None and (cell.document < 1 or cell.device == "cpu"):
        raise Misuse(f"document-tokens {cell.document}: at least 1, and packed sequences are planned on GPUs only")
    if cell.gpus > MOST_GPUS:
        raise Misuse(f"gpus {cell.gpus}: at most {MOST_GPUS} are simulated")
    if cell.gpus % cell.tensor_parallel:
        divisors = [n for n in range(1, cell.gpus + 1) if cell.gpus % n == 0]
        closest = min(divisors, key=lambda n: abs(n - cell.tensor_parallel))
        raise Misuse(
            f"tensor-parallel {cell.tensor_parallel} does not divide {cell.gpus} GPUs; the nearest that does: {closest}"
        )
    if cell.expert_parallel < 1 or cell.data_parallel % cell.expert_parallel:
        raise Misuse(f"expert-parallel {cell.expert_parallel}: must divide the {cell.data_parallel} data-parallel GPUs")
    if cell.expert_parallel > 1 and (
        cell.zero < 2
        or cell.tensor_parallel > 1
        or cell.adapters is not None
        or cell.precision == "master"
        or cell.official
    ):
        raise Misuse("expert-parallel: planned with --zero 2 or 3, without tensor parallelism, lora and master weights")
    if cell.device == "cpu" and cell.attention != "fused":
        raise Misuse("attention eager is a GPU setting; on a CPU the model chooses for itself")
    if cell.accumulate < 1 or cell.checkpoint_every < 1:
        raise Misuse("accumulate, checkpoint-every: at least 1 each")
    if cell.checkpoint_every > 1 and not cell.checkpointing:
        raise Misuse("checkpoint-every: needs --checkpointing")
    if cell.accumulate > 1 and inside_backward(cell.optimizer):
        raise Misuse("accumulate: an update inside backward uses each gradient at once; use one batch per step")
    if cell.adapters is not None:
        adapter_settings.check(cell.adapters)
        if cell.tensor_parallel > 1 or cell.precision == "master" or cell.device == "cpu":
            raise Misuse("lora: planned on GPUs, without tensor parallelism and master weights")
        if cell.adapters.base != "16" and cell.precision != "bf16":
            raise Misuse(f"base {cell.adapters.base}: packed weights compute in 16 bits; use --precision bf16")
    if cell.optimizer.get("name") in optimizer_names.FOREIGN:
        refused = cell.precision == "master" or cell.offload or cell.device == "cpu" or cell.official
        if refused or (cell.zero == 1 and cell.data_parallel > 1):
            raise Misuse(
                f"{cell.optimizer['name']}: simulated on GPUs only, without offload, master weights and zero 1"
            )
    if cell.official and (cell.device == "cpu" or cell.offload or cell.precision == "master" or cell.zero == 1):
        raise Misuse(
            "official: these optimizers are simulated on GPUs only, without offload, master weights and zero 1"
        )


def inside_backward(optimizer: dict) -> bool:
    """Whether weights are updated while gradients are still being computed."""
    return "backward" in optimizer or optimizer.get("name") in ("lomo", "adalomo")
