"""How a parameter and its state lie in memory, and the fp32 copies on which a rule works: out of storage, and back.

A tensor that is fp32 and contiguous is its own copy. Others are copied for the one update: 16-bit weights and moments, a
first moment in codes (eight_bit.py) with the scales beside it, bf16 weights with the 8 bits that follow theirs
(rounding="corrected"). Rules see nothing of this.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.blocks import ParamBlocks
from lowmem.optim.core.eight_bit import block_ids, decoded, encode, largest, scale_count, scales
from lowmem.optim.core.layout import Layout
from lowmem.optim.core.rounding import low_bits, round_into, with_low_bits

SCALE = "_scale"  # state "exp_avg" has its scales in "exp_avg_scale"
LOW = "weight_low"  # state: bits of a bf16 weight that follow the 16 of the weight itself


def is_scale(key: str) -> bool:
    """Whether a key of the state holds the scales of another one."""
    return key.endswith(SCALE)


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


def check_codes(name: str, state: dict[str, Tensor]) -> None:
    """RuntimeError where codes or their scales were cast to another dtype, which makes them meaningless."""
    for key in state:
        if not is_scale(key):
            continue
        for part, dtype in ((key.removesuffix(SCALE), torch.int8), (key, torch.float32)):
            if state[part].dtype != dtype:
                raise RuntimeError(
                    f"{name}: {part} was cast to {state[part].dtype}, but belongs to 8-bit codes and is {dtype}; to keep the "
                    "moment in another dtype, load the state into an optimizer with that state_dtype"
                )


def check_state(lay, form: str, state: dict[str, Tensor], replicated: tuple[str, ...]) -> None:
    """RuntimeError for a state tensor that was replaced by one of another size."""
    for key, value in state.items():
        scales = scale_count(lay.blocks.numel) if is_scale(key) else None
        if scales is not None:
            fits = value.numel() == scales
        elif key in replicated:
            fits = value.numel() == lay.blocks.count if form == "blocks" else value.ndim == len(lay.frame)
        else:
            fits = value.numel() == lay.held
        if not fits:
            want = scales or (lay.blocks.count if form == "blocks" and key in replicated else lay.held)
            raise RuntimeError(
                f"{lay.blocks.name}: {key} has {value.numel()} elements, not {want}; to reset state, assign an empty "
                "dictionary to opt.state[parameter]"
            )


def as_exact(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """x as a contiguous tensor of this dtype on this device: itself where it is one (asking is cheaper than `to`)."""
    if x.dtype == dtype and x.device == device and x.is_contiguous():
        return x
    return x.to(device, dtype, non_blocking=device.type == "cuda").contiguous()


def scaled(g: Tensor, factor: float | Tensor) -> Tensor:
    """A gradient times a number: 16-bit ones as an fp32 copy, others in place."""
    if not isinstance(factor, Tensor) and factor == 1.0:
        return g
    return (g.float() if g.dtype in (torch.float16, torch.bfloat16) else g).mul_(factor)


class Copies:
    """Contiguous fp32 (or fp64) copies of a stored parameter `p` and its `state`, whose numbers `write` puts back."""

    def __init__(self, p: Tensor, state: dict[str, Tensor], lay: Layout):
        self.exact = torch.promote_types(p.dtype, torch.float32)
        self.stored, self.kept, self.blocks = p, state, lay.blocks
        self.coded = [key for key, value in state.items() if key + SCALE in state]
        self.ids = None
        if self.coded and lay.held != lay.blocks.numel:
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
        return {key: largest(self.state[key], self.ids, self.blocks.numel) for key in self.coded}

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
