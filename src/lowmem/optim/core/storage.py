"""How a parameter and its state lie in memory, and the fp32 copies on which a rule works: out of storage, and back.

A tensor that is fp32 and contiguous is its own copy. Others are copied for the one update: 16-bit weights and moments, a
first moment in codes (eight_bit.py) with the scales beside it, bf16 weights with the 8 bits that follow theirs
(rounding="corrected"). Rules see nothing of this.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.blocks import ParamBlocks
from lowmem.optim.core.eight_bit import SCALE, block_ids, decoded, encode, is_scale, largest, scale_count, scales
from lowmem.optim.core.rounding import as_exact, low_bits, round_into, with_low_bits
from lowmem.optim.core.rule import Layout

LOW = "weight_low"  # state: bits of a bf16 weight that follow the 16 of the weight itself


def is_coded(group: dict) -> bool:
    """Whether a group's first moments are kept in 8-bit codes."""
    return group["state_dtype"] == torch.int8


def check_storage(optimizer, group: dict) -> None:
    """ValueError for storage that a rule does not have."""
    if is_coded(group) and not optimizer.in_codes:
        raise ValueError(
            f"state_dtype=int8: is for the first moment of AdamMini, AdamW and Lion; {optimizer.known_as()} has no 8-bit form"
        )


def extra_state(p: Tensor, state: dict[str, Tensor], blocks: ParamBlocks, group: dict) -> dict[str, Tensor]:
    """What storage adds to a rule's own state."""
    count = scale_count(blocks.numel)
    coded = [key for key, value in state.items() if value.dtype == torch.int8]
    found = {key + SCALE: torch.zeros(count, dtype=torch.float32, device=p.device) for key in coded}
    if group["rounding"] == "corrected" and p.dtype == torch.float16:
        raise ValueError(f"{blocks.name}: rounding='corrected' is for bf16 weights, this one is fp16; use 'stochastic'")
    if group["rounding"] == "corrected" and p.dtype == torch.bfloat16:
        found[LOW] = torch.zeros_like(p, dtype=torch.int8)
    return found


class Copies:
    """Contiguous fp32 (or fp64) copies of a stored parameter `p` and its `state`, whose numbers `write` puts back."""

    def __init__(self, p: Tensor, state: dict[str, Tensor], lay: Layout):
        self.exact = torch.promote_types(p.dtype, torch.float32)
        self.stored, self.kept, self.numel = p, state, lay.blocks.numel
        self.coded = [key for key, value in state.items() if key + SCALE in state]
        self.ids = None
        if self.coded and lay.held != self.numel:
            self.ids = block_ids(lay.blocks.shape, lay.boxes, p.device)
        self.p = with_low_bits(p, state[LOW].to(p.device)) if LOW in state else as_exact(p, p.device, self.exact)
        self.state = {key: self._opened(key) for key in state if not is_scale(key) and key != LOW}

    def _opened(self, key: str) -> Tensor:
        value, device = self.kept[key], self.stored.device
        if key not in self.coded:
            return as_exact(value, device, self.exact)
        return decoded(value.to(device), self.kept[key + SCALE], self.ids, self.exact)

    @property
    def made(self) -> bool:
        """Whether anything was copied."""
        return self.p is not self.stored or any(self.state[key] is not self.kept[key] for key in self.state)

    def largest(self) -> dict[str, Tensor]:
        """For each moment in codes: the largest size in each block, as far as this process holds it."""
        return {key: largest(self.state[key], self.ids, self.numel) for key in self.coded}

    def write(self, rounding: str, most: dict[str, Tensor]) -> None:
        """Everything back into storage. most: largest(), complete over processes."""
        if self.p is not self.stored:
            round_into(self.stored, self.p, rounding)
        if LOW in self.kept:
            low = self.kept[LOW]
            low.copy_(low_bits(self.p, self.stored), non_blocking=low.device != self.p.device)
        for key, copy in self.state.items():
            target = self.kept[key]
            if key in self.coded:
                scale = self.kept[key + SCALE]
                scale.copy_(scales(most[key]))
                encode(target, copy, scale, self.ids, rounding)
            elif copy is not target:
                round_into(target, copy, rounding, wait=target.device == self.stored.device)
