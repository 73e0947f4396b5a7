"""Adam-mini, AdamW and plain descent on a GPU: all tensors of one device and dtype in a few Triton launches.

Each weight, gradient and moment is read and written once (the gradient of a long block twice), whatever the dtype:
20 bytes per element in fp32, 10 in bf16, where the stages move 36 and 66. A first moment in 8-bit codes is never copied.
What the kernels cannot do (cut blocks, other statistics, fp64, offloaded moments, 8 more bits of weights) stays with the
stages: same arithmetic, other order of rounding (1e-6 relative).

Nothing here waits for the device. A plan keeps addresses between steps; every step compares them, and every shape, dtype
and device, with those of the tensors that it is given.
"""

from __future__ import annotations

import functools
import logging
import os

import torch
from torch import Tensor, nn

from lowmem.optim.core.eight_bit import scale_count
from lowmem.optim.core.gpu_tables import Plan, Tensors, numbering, plan
from lowmem.optim.core.rule import Update
from lowmem.optim.core.storage import LOW, SCALE
from lowmem.optim.core.transfers import upload

log = logging.getLogger("lowmem")
ADAM = (  # columns of the groups' table
    "decay_factor", "step_size", "beta2", "one_minus_beta1", "one_minus_beta2", "eps", "inv_sqrt_bias_correction2", "factor",
)  # fmt: skip
HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALVES)
ROUNDED = (*HALVES, torch.int8)
PLAIN = (Tensor, nn.Parameter)  # no DTensor, FakeTensor or other kind of its own
WARPS = {"elements": 4, "blocks": 8, "long": 16}  # by what a program sees: single elements, whole blocks, long ones
INSIDE_BACKWARD = 3  # launches for one tensor
MOST_PLANS = 1 << 14  # kept at a time; a plan per parameter inside backward, one per set of parameters otherwise
MOST_NESTED = 1 << 31  # elements of a tensor that is numbered in chunks, or in codes: 32-bit division
MOST_STRIPS = 64  # strips of a tensor in codes, each of whose programs looks at all of them
launched: list[str] | None = None  # names of the kernels started, where somebody counts them


@functools.cache
def kernels(device: torch.device):
    """The module of kernels if they can be built and started on this device, else None (the reason goes to the log at
    debug level)."""
    if os.environ.get("LOWMEM_KERNEL") == "0":
        return None
    try:
        from lowmem.optim.core import triton_kernels

        found = torch.zeros(1, device=device)
        with _on(device):
            triton_kernels.probe[(1,)](found)
    except Exception as error:  # not installed, no C compiler for its launcher, a device it does not know: any kind
        log.debug(
            "no Triton kernels on %s (%s: %s); optimizers use their PyTorch code", device, type(error).__name__, error
        )
        return None
    return triton_kernels


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter instead of on a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def adam(optimizer, updates: list[Update]) -> list[Update]:
    """Make every update that the kernels can make; returns the others."""
    return _step(optimizer, updates, _fits_adam, lambda h: [h[name] for name in ADAM])


def descent(optimizer, updates: list[Update]) -> list[Update]:
    """The same for p -= lr * g with decoupled decay and without momentum."""

    def numbers(h: dict) -> list[float]:
        return [1 - h["lr"] * h["weight_decay"], h["lr"], 0.0, 0.0, 0.0, 0.0, 0.0, h["factor"]]

    return _step(optimizer, updates, _fits_descent, numbers)


def _step(optimizer, updates: list[Update], fits, numbers) -> list[Update]:
    rest, sets, places = [], {}, ("cuda", "cpu") if interpreted() else ("cuda",)
    for update in updates:
        group, p, g, state, _, lay = update
        if p.device.type not in places or LOW in state or not fits(*update):
            rest.append(update)
            continue
        moments = state.get("exp_avg"), state.get("exp_avg_sq")
        dtypes = (p.dtype, g.dtype, *(t if t is None else t.dtype for t in moments))
        stochastic = group["rounding"] == "stochastic" and any(d in ROUNDED for d in (dtypes[0], *dtypes[2:]))
        if _numbered(lay, stochastic) and kernels(p.device):
            sets.setdefault((p.device, dtypes, stochastic), []).append(update)
        else:
            rest.append(update)
    for (device, dtypes, stochastic), alike in sets.items():
        _run(optimizer, alike, device, dtypes, stochastic, numbers)
    return rest


def _alike(p: Tensor, tensors: tuple, held: int, dtypes: tuple = FLOATS) -> bool:
    return all(
        type(t) in PLAIN
        and t.dtype in dtypes
        and t.device == p.device
        and t.numel() == held
        and t.is_contiguous()
        and not t.is_neg()
        and t.untyped_storage().nbytes() >= t.element_size() * (t.storage_offset() + held)
        for t in tensors
    )


def _fits_adam(group: dict, p: Tensor, g: Tensor, state: dict, h: dict, lay) -> bool:
    m, v = state["exp_avg"], state["exp_avg_sq"]
    kept = _in_codes(p, m, state.get("exp_avg" + SCALE), lay) if m.dtype == torch.int8 else _alike(p, (m,), lay.held)
    if h.get("reduce", "mean") != "mean" or not kept or not _alike(p, (p, g), lay.held):
        return False
    if lay.shared:
        return v.dtype == torch.float32 and _alike(p, (v,), lay.blocks.count)
    return _alike(p, (v,), lay.held)


def _in_codes(p: Tensor, m: Tensor, scale: Tensor | None, lay) -> bool:
    """Whether the kernels can read a first moment in codes: of a whole parameter, with its scales."""
    numel = lay.blocks.numel
    known = scale is not None and _alike(p, (m,), numel, (torch.int8,))
    known = known and _alike(p, (scale,), scale_count(numel), (torch.float32,))
    return known and lay.held == numel < MOST_NESTED and len(lay.strips) <= MOST_STRIPS


def _fits_descent(group: dict, p: Tensor, g: Tensor, state: dict, h: dict, lay) -> bool:
    decay = h["weight_decay"] == 0 or h["decoupled"]
    return h["momentum"] == 0 and decay and _alike(p, (p, g), lay.held)


def _numbered(lay, stochastic: bool) -> bool:
    """Whether the kernels can number a tensor's elements, which only random bits need."""
    if not stochastic:
        return True
    found = numbering(lay)
    return found is not None and (found[1] == found[2] or lay.held < MOST_NESTED)


def _run(optimizer, updates: list[Update], device: torch.device, dtypes: tuple, stochastic: bool, numbers) -> None:
    """All launches for one set of tensors."""
    overflow = optimizer.overflow
    one = updates[0].grad if len(updates) == 1 and overflow is None else None
    groups: dict[int, tuple[int, dict]] = {}
    for update in updates:
        groups.setdefault(id(update.hyper), (len(groups), update.hyper))
    chosen = _plan(optimizer, updates, device, dtypes, stochastic, groups)
    rows = [numbers(h) for _, h in groups.values()]
    if one is None:
        addresses = torch.tensor([update.grad.data_ptr() for update in updates], device="cpu")
        numbered = torch.tensor(rows, dtype=torch.float32, device="cpu").view(torch.int64).view(-1)
        table = upload(torch.cat([numbered, addresses]), device)  # in this order both lie at multiples of 16 bytes
        gradients, scalars = table[len(numbered) :], table[: len(numbered)].view(torch.float32)
    else:
        gradients, scalars = one, _kept(optimizer, updates[0].hyper, rows, device)
    if overflow is not None:
        scalars.view(len(rows), len(ADAM))[:, -1].mul_(overflow.on(device)[2])
    seed = _seed(optimizer, updates[0].state) if stochastic else 0
    pt, gt, mt, vt = map(_type, dtypes)
    given = dict(
        segments=chosen.segments, gradients=gradients, groups=scalars, partial=chosen.partial, rates=chosen.rates
    )
    given |= dict(seed=seed, PT=pt, GT=gt, MT=mt, VT=vt, STOCH=stochastic, NEST=stochastic and chosen.nest)
    given |= dict(ONE=one is not None, EXPLICIT=interpreted(), SKIPS=overflow is not None)
    with _on(device):
        for launch in chosen.launches:
            _launch(launch, {**given, **launch.constants}, device)
    torch.autograd.graph.increment_version([update.param for update in updates])  # as any in-place operation does
    optimizer.step_kernel = "Triton"


def _launch(launch, given: dict, device: torch.device) -> None:
    kernel = getattr(kernels(device), launch.kernel, None) or _codes()
    arguments = {name: launch.tiles if name == "tiles" else given[name] for name in kernel.arg_names}
    size = launch.constants.get("ROWS", 1) * launch.constants.get("WIDTH", 0)
    warps = WARPS["long" if size > 8192 else "blocks" if size or launch.kernel == "codes" else "elements"]
    if launched is not None:
        launched.append(launch.kernel)
    kernel[(len(launch.tiles),)](**arguments, num_warps=warps)


def _codes():
    from lowmem.optim.core.triton_codes import codes

    return codes


def _plan(optimizer, updates: list[Update], device, dtypes, stochastic: bool, groups: dict) -> Plan:
    """Tables for these tensors: those of an earlier step, if every address, layout and place in them is the same."""
    tensors, fingerprint = [], []
    for index, (_, p, g, state, h, lay) in enumerate(updates):
        m, v, aligned = state.get("exp_avg"), state.get("exp_avg_sq"), g.data_ptr() % 16 == 0
        scale = state.get("exp_avg" + SCALE)
        tensors.append(Tensors(index, groups[id(h)][0], p, m, v, lay, aligned, scale))
        addresses = (0 if t is None else t.data_ptr() for t in (p, m, v, scale))
        fingerprint.append((*addresses, lay, groups[id(h)][0], aligned))
    key = (device, dtypes, stochastic, len(updates), fingerprint[0][0])
    found = optimizer.plans.get(key)
    if found is None or found[0] != fingerprint:
        if len(optimizer.plans) >= MOST_PLANS:
            optimizer.plans.clear()
        most = INSIDE_BACKWARD if len(updates) == 1 else None
        found = optimizer.plans[key] = (fingerprint, plan(tensors, device, most))
    return found[1]


def _kept(optimizer, h: dict, rows: list, device: torch.device) -> Tensor:
    """The numbers of one group on the device, uploaded once per backward (which has one h) and stream."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    found = optimizer.plans.get(("numbers", device, stream))
    if found is None or found[0] is not h:
        found = optimizer.plans["numbers", device, stream] = (
            h,
            upload(torch.tensor(rows, dtype=torch.float32, device="cpu"), device),
        )
    return found[1]


def _seed(optimizer, state: dict) -> int:
    """A number for this step's random bits from torch's CPU generator, drawn at the first tensor of a step or backward."""
    count = state["step"].item()
    found = optimizer.plans.get("seed")
    if found is None or found[0] != count or optimizer.shared is None:
        found = optimizer.plans["seed"] = (count, int(torch.randint(1 << 31, (), device="cpu")))
    return found[1]


@functools.cache
def _type(dtype: torch.dtype | None):
    import triton.language as tl

    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, tl.float32)


def _on(device: torch.device):
    """Launches go to the current device."""
    return torch.cuda.device(device if device.type == "cuda" else -1)
