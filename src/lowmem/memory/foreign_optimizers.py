"""Optimizers of other packages, as the accountant needs them: the state they keep and the copies they hold in a step.

adamw_fused     torch.optim.AdamW(fused=True): one kernel, no copies
adamw_foreach   torch.optim.AdamW as it is on a GPU by default: a further copy of the size of one moment
adamw8bit       bitsandbytes: a byte per moment and an fp32 scale per 256 of them, small tensors in fp32; one kernel per tensor
paged_*         the same with its state in memory that the driver moves between host and GPU (bitsandbytes)
ao_*            torchao's AdamW of 8 and 4 bits and of fp8, see AO in optimizer_names.py; one compiled step per tensor

torchao compiles its step. What the compiled code holds beside the state is not known and not counted: two measured steps of
data/published/training_cells.yaml with 4 bits held 0.5 and 4.6 GB more than with bitsandbytes' 8. Its CPUOffloadOptimizer
steps on the CPU, whose speed is not modelled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowmem.errors import Misuse
from lowmem.memory import official_optimizers
from lowmem.memory.official_optimizers import local
from lowmem.memory.optimizer_names import AO

BLOCK = 256  # weights that share a scale
SMALL = 4096  # tensors below it keep whole moments


class Foreign:
    """What accountant.py asks of an optimizer: prepare(), state, step(), zero_grad(). clip: by the norm, before the step."""

    def __init__(self, model: nn.Module, name: str, tracker, clip: bool = False, **settings):
        if unknown := settings.keys() - {"lr", "betas", "eps", "weight_decay"}:
            raise Misuse(f"{name}: {sorted(unknown)[0]!r} is not simulated; drop it")
        self.kind, self.paged = name.removeprefix("paged_"), name.startswith("paged_")
        self.tracker, self.clip, self.state = tracker, clip, {}
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def prepare(self) -> None:
        """Moments as the first step makes them."""
        self.state = {p: self.moments(local(p)) for p in self.parameters}

    def moments(self, own: Tensor) -> dict[str, Tensor]:
        """State of one parameter as that package keeps it, of the shapes and dtypes that it would have."""
        if self.kind in AO:
            return self.coded(own, *AO[self.kind])
        if self.kind != "adamw8bit":
            return {"first": torch.zeros_like(own), "second": torch.zeros_like(own)}
        count = own.numel()
        if count < SMALL:
            return {key: torch.zeros_like(own, dtype=torch.float32) for key in ("first", "second")}
        made = {key: own.new_zeros(own.shape, dtype=torch.uint8) for key in ("first", "second")}
        return made | {f"{key} scales": own.new_zeros(-(-count // BLOCK), dtype=torch.float32) for key in made}

    def coded(self, own: Tensor, bits: int, block: int, table: int) -> dict[str, Tensor]:
        """Two moments in codes of `bits` bits with one scale per `block`; small or odd tensors keep theirs whole."""
        count = own.numel()
        if count < SMALL or count % block:
            return {key: torch.zeros_like(own) for key in ("first", "second")}
        sizes = {"codes": (count * bits // 8, torch.uint8), "scales": (count // block, torch.float32)}
        sizes |= {"table": (table, torch.float32)} if table else {}
        return {
            f"{key} {part}": own.new_zeros(size, dtype=dtype)
            for key in ("first", "second")
            for part, (size, dtype) in sizes.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        """Clip, then update: adamw_foreach operation by operation, the others as kernels that make no tensor."""
        gradients = [local(p.grad) for p in self.parameters]
        if self.clip:
            official_optimizers.clip(gradients)
        weights = [local(p) for p in self.parameters]
        if self.kind == "adamw_foreach":
            first, second = ([self.state[p][key] for p in self.parameters] for key in ("first", "second"))
            official_optimizers.adamw(weights, gradients, first, second)
            return
        for p, w, g in zip(self.parameters, weights, gradients):
            state = sum(x.numel() * x.element_size() for x in self.state[p].values())
            moved = 2 * w.numel() * w.element_size() + g.numel() * g.element_size() + 2 * state
            self.tracker.work[self.tracker.stage, "stream", moved] += 1

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.parameters:
            p.grad = None
