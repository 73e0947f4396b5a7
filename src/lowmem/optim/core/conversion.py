"""Conversion of states of other optimizers, or in other storage, to one of ours, to continue in the middle of a run.

This includes what loading does by itself (loading.py): AdamW of this package or of torch to AdamMini by block means
of the second moment, the first moment kept; between fp32, bf16 and int8. Only here: states of the official Adam_mini.
"""

from __future__ import annotations

import torch

from lowmem.optim.core.loading import check_form, fitted
from lowmem.optim.core.state_dict import pack


def convert(state: dict, to: torch.optim.Optimizer) -> dict:
    """A state dictionary as the optimizer `to` would save it, from that of another one; neither is modified.

    to: an optimizer of this package over the same model, not sharded; FusedBackward also. From the official Adam_mini only
    moments and step counts come over, settings are those of `to`. ValueError, with the reason, where no conversion is defined.
    """
    inner = getattr(to, "inner", to)
    if not hasattr(inner, "known_as"):
        raise ValueError(f"convert(state, to=...): `to` is an optimizer of lowmem.optim, not {type(to).__name__}")
    check_form(state)
    members = [p for group in inner.param_groups for p in group["params"]]
    if any(inner.shard(p) is not None for p in members):
        raise ValueError(
            "convert needs an optimizer of the whole model; convert on one process and load the result anywhere"
        )
    state = {key: value for key, value in state.items() if key != "fused"}
    entries = list(state.get("state", {}).values())
    if any("m" in entry and entry.keys() & {"v", "vmean"} for entry in entries):
        state = _from_official(inner, state)
    elif any("blocks" in group for group in state["param_groups"]) and keeps_squares(inner) and not inner.uses_blocks:
        raise ValueError(
            f"the state is AdamMini's, whose second moments are means over blocks; {inner.known_as()} needs "
            "one for each weight"
        )
    groups, found = fitted(inner, state)
    number = {p: i for i, p in enumerate(members)}
    groups = [{**group, "params": [number[p] for p in group["params"]]} for group in groups]
    return pack(inner, {"state": {number[p]: entry for p, entry in found.items()}, "param_groups": groups})


def keeps_squares(optimizer) -> bool:
    """Whether an optimizer keeps second moments in the form of Adam's."""
    group = optimizer.param_groups[0]
    known = next((p for p in group["params"] if p in optimizer.members.blocks), None)
    return known is not None and "exp_avg_sq" in optimizer.init(known, group, optimizer.blocks(known), known.dtype)


def _from_official(optimizer, state: dict) -> dict:
    """The official Adam_mini's state under our names: it has one group per parameter, in the order of the model."""
    if not optimizer.uses_blocks:
        raise ValueError(
            f"the state is the official Adam_mini's, of which {optimizer.known_as()} cannot take block means; use AdamMini"
        )
    current = optimizer.state_dict()
    own_indices = [i for group in current["param_groups"] for i in group["params"]]
    index_of = dict(zip([p for group in optimizer.param_groups for p in group["params"]], own_indices))
    model = optimizer.model()
    ordered = [p for p in model.parameters() if p in index_of] if model is not None else list(index_of)
    indices = [i for group in state["param_groups"] for i in group["params"]]
    if len(indices) != len(ordered):
        raise ValueError(
            f"the official state has {len(indices)} parameters, this {optimizer.known_as()} has {len(ordered)}"
        )
    found = {}
    for i, p in zip(indices, ordered):
        if entry := state["state"].get(i):
            found[index_of[p]] = _entry(optimizer, p, entry)
    return {"state": found, "param_groups": current["param_groups"]}


def _entry(optimizer, p, entry: dict) -> dict:
    name, blocks, first = optimizer.name(p), optimizer.blocks(p), entry["m"]
    if first.numel() != p.numel():
        raise ValueError(
            f"{name}: the official state has {first.numel()} elements, the parameter {p.numel()}; is the state from this model?"
        )
    if "v" in entry:
        second = entry["v"].view(p.shape)
    elif entry["vmean"].numel() == blocks.count and blocks.kind != "coordinate":
        second = entry["vmean"].reshape(-1)
    else:
        raise ValueError(
            f"{name}: the official state has {entry['vmean'].numel()} blocks, this optimizer {blocks.count} ({blocks.kind}); "
            "build it with lowmem.compat.Adam_mini, or with overrides that give its blocks"
        )
    return {"exp_avg": first.reshape(p.shape), "exp_avg_sq": second, "step": entry["step"]}
