"""Loading a state dictionary: which optimizer wrote it, what it lacks, where each tensor belongs. Errors name both sides.

What can be completed is: settings that an older version, or torch, did not save; a step count that is missing or a whole
number; parameters that were frozen on one side; the second moment of an Adam, of which Adam-mini takes block means.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from lowmem.blocks.layers import is_lazy
from lowmem.optim.core.hyperparameters import check_settings, plain_name
from lowmem.optim.core.layout import layout
from lowmem.optim.core.matching import OWN, STORAGE, matched, saved_settings
from lowmem.optim.core.recoding import check_code, recoded
from lowmem.optim.core.rule import in_frame, narrowed, view_of
from lowmem.optim.core.sharding import is_dtensor
from lowmem.optim.core.state_dict import placed
from lowmem.optim.core.storage import LOW, SCALE, extra_state, is_scale

# What torch's optimizers save besides the settings they share with ours; True for one that changes the updates.
FOREIGN = {
    **dict.fromkeys(("foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"), False),
    **dict.fromkeys(("amsgrad", "maximize", "centered"), True),
}
SIGNS = (  # state names that identify an optimizer, the most specific first
    ({"exp_inf"}, "torch.optim.Adamax"), ({"mu_product"}, "torch.optim.NAdam"), ({"acc_delta"}, "torch.optim.Adadelta"),
    ({"vmean"}, "the official adam_mini"), ({"row_var"}, "torch.optim.Adafactor"), ({"variance"}, "torch.optim.Adafactor"),
    ({"max_exp_avg_sq"}, "Adam with amsgrad"), ({"exp_avg_res_row"}, "CAME"), ({"exp_avg_sq_row"}, "an Adafactor"),
    ({"exp_avg", "exp_avg_sq"}, "an Adam"), ({"accumulator_0"}, "SM3"), ({"square_avg"}, "torch.optim.RMSprop"),
    ({"sum"}, "torch.optim.Adagrad"), ({"momentum_buffer"}, "SGD with momentum"), ({"exp_avg"}, "Lion"),
)  # fmt: skip


def fitted(optimizer, saved: dict) -> tuple[list[dict], dict]:
    """(groups, {parameter: state}) of a state dictionary as this optimizer has them. ValueError for what cannot be used."""
    check_form(saved)
    source = _source([saved["state"].get(i, {}) for group in saved["param_groups"] for i in group["params"]])
    matches = matched(optimizer, saved, source)
    groups, state = [], {}
    merged = saved_settings(optimizer, saved["param_groups"], matches)
    for saved_group, live, members in zip(merged, optimizer.param_groups, matches):
        entries = [saved["state"].get(i, {}) for i, _, _ in members]
        if members and not any(entries):
            _check_rule(optimizer, saved_group, live)
        group = _settings(optimizer, saved_group, live, _source(entries))
        for source_group in {id(source_group): source_group for _, source_group, _ in members}.values():
            _check_blocks(optimizer, source_group, live)
        groups.append(group)
        for i, source_group, p in members:
            if entry := saved["state"].get(i):
                state[p] = _entry(optimizer, p, group, source_group, dict(entry))
    return groups, state


def check_form(saved: dict) -> None:
    """ValueError for anything that is not a state dictionary."""
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= saved.keys():
        raise ValueError("the state of an optimizer is a dictionary with 'state' and 'param_groups'")
    entries, groups = saved["state"], saved["param_groups"]
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError("'state' of an optimizer's state is a dictionary with one dictionary for each parameter")
    lists = (list, tuple)
    if not isinstance(groups, lists) or not all(
        isinstance(group, dict) and isinstance(group.get("params"), lists) for group in groups
    ):
        raise ValueError(
            "'param_groups' of an optimizer's state is a list of dictionaries, each with a list of 'params'"
        )


def _check_rule(optimizer, theirs: dict, live: dict) -> None:
    """ValueError for the settings of another rule, where no state says whose they are: an optimizer that keeps none, or made
    no step."""
    other = sorted(OF_ONE_RULE & theirs.keys() - live.keys())
    plain = optimizer.defaults.keys() <= {"lr", "weight_decay", *STORAGE} and not any(
        theirs[key] for key in other
    )  # as SGD
    if other and not plain:
        raise ValueError(
            f"the state holds nothing but settings, among them {', '.join(other)}, which {optimizer.known_as()} does not have; "
            "it is that of another optimizer"
        )


def _settings(optimizer, theirs: dict, live: dict, source: str) -> dict:
    """A saved group's settings, completed by this optimizer's; those of storage and the parameters are its own."""
    kind = optimizer.known_as()
    wrong = next((key for key, matters in FOREIGN.items() if matters and theirs.get(key) is True), None)
    if wrong:
        raise ValueError(f"the state was saved with {wrong}=True, which {kind} does not have")
    if "ns_steps" in theirs:
        raise ValueError(f"the state is that of torch.optim.Muon, whose momentum is another one than that of {kind}")
    if theirs.get("decoupled_weight_decay") is False and theirs.get("weight_decay"):
        raise ValueError(
            f"the state was saved with weight_decay={theirs['weight_decay']} added to the gradient (as torch.optim.Adam does), "
            f"but {kind} decouples it; to continue that way, set weight_decay in its param_groups again and "
            "decoupled_weight_decay to True"
        )
    own = {key: live[key] for key in STORAGE if key in live}
    left_out = {*OWN, *FOREIGN} | (RULES - live.keys())
    kept = {key: copy.deepcopy(value) for key, value in theirs.items() if key not in left_out}
    group = {**live, **kept, **own}
    try:
        check_settings(group, optimizer.beta_count, optimizer.eps_count)
    except ValueError as error:
        raise ValueError(f"the state is that of {source}, whose settings {kind} cannot take: {error}") from error
    return group


OF_ONE_RULE = {"momentum", "dampening", "nesterov", "betas", "rho", "alpha"}
RULES = {"momentum", "dampening", "nesterov", "betas", "beta1", "beta", "alpha", "rho", "decoupled"}


def _check_blocks(optimizer, theirs: dict, live: dict) -> None:
    """ValueError, naming the parameter, for a state that was saved with other blocks."""
    saved = theirs.get("blocks", []) if optimizer.uses_blocks else []
    named = {plain_name(optimizer.name(p)): p for p in live["params"] if not is_lazy(p)}
    if saved and isinstance(saved[0], str):  # of an earlier version: in the order of the parameters
        saved = list(zip(named, saved)) if len(saved) == len(live["params"]) else []
    for name, signature in saved:
        p = named.get(plain_name(name))
        if p is not None and signature != optimizer.blocks(p).signature:
            raise ValueError(
                f"{optimizer.name(p)}: the state was saved with blocks {signature}, this optimizer has "
                f"{optimizer.blocks(p).signature}; build it with the same partition settings"
            )


def _entry(optimizer, p: nn.Parameter, group: dict, theirs: dict, found: dict) -> dict:
    """The state of one parameter: its names, shapes and dtypes as init() makes them, its step count a tensor."""
    name, kind, blocks = optimizer.name(p), optimizer.known_as(), optimizer.blocks(p)
    step = found.pop("step", theirs.get("step"))
    found = {key: value for key, value in found.items() if value is not None}
    want = optimizer.init(p, group, blocks, group["state_dtype"] or p.dtype)
    optional = {key for key, _ in optimizer.optional_state}
    low = found.pop(LOW, None)
    scale_of = {key.removesuffix(SCALE): found.pop(key) for key in list(found) if is_scale(key)}
    if scale_of:
        check_code(name, kind, theirs)
    if not want.keys() - optional <= found.keys() <= want.keys() | optional:
        expected, present = (", ".join(sorted(keys)) or "nothing" for keys in (want, found))
        raise ValueError(
            f"{name}: the state is that of {_source([found])}, which keeps {present}; {kind} keeps {expected} and cannot go on "
            "from it"
        )
    if step is None:
        if optimizer.scalars(group, 2.0) != optimizer.scalars(group, 1000.0):
            raise ValueError(f"{name}: the state has no step count, which {kind} needs")
        step = 1.0
    entry = {"step": torch.tensor(_count(name, step), dtype=torch.float32, device="cpu")}
    replicated = optimizer.replicated(blocks)
    for key, value in found.items():
        fresh = want.get(key, value)
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: saved {key} is {type(value).__name__}, expected a tensor")
        if not (value.is_floating_point() or value.dtype == torch.int8):
            raise ValueError(f"{name}: saved {key} is {value.dtype}, expected floating-point numbers or int8 codes")
        whole = tuple(fresh.shape) if key in replicated or optimizer.shard(p) is None else blocks.shape
        shape = tuple(value.shape)
        if (
            optimizer.uses_blocks
            and key in replicated
            and shape == blocks.shape != whole
            and _takes_means(group, blocks)
        ):
            value, shape = block_means(value.full_tensor() if is_dtensor(value) else value, blocks), whole
        if shape not in (whole, tuple(fresh.shape)):
            source = "" if found.keys() != {"exp_avg", "exp_avg_sq"} else f" (of {_source([found])})"
            raise ValueError(f"{name}: saved {key}{source} has shape {shape}, {kind} expects {whole}")
        if torch.int8 in (value.dtype, fresh.dtype):
            entry |= recoded(optimizer, p, key, value, scale_of.get(key), fresh.dtype)
            continue
        value = placed(optimizer, p, key, value)
        entry[key] = value if value.dtype == fresh.dtype else value.to(fresh.dtype)
    if (empty := extra_state(p, {}, blocks, group).get(LOW)) is not None:
        fits = (
            isinstance(low, Tensor)
            and low.dtype == torch.int8
            and tuple(low.shape) in (blocks.shape, tuple(empty.shape))
        )
        entry[LOW] = placed(optimizer, p, LOW, low) if fits else empty
    return entry


def _count(name: str, step) -> float:
    """A saved step count as a number. ValueError for an impossible one."""
    try:
        count = float(step)
    except (TypeError, ValueError, RuntimeError):
        count = math.nan
    if not 0 <= count < math.inf:
        shown = tuple(step.shape) if isinstance(step, Tensor) and step.numel() != 1 else step
        raise ValueError(f"{name}: the saved step count is {shown!r}, expected one number of 0 or more")
    return count


def _takes_means(group: dict, blocks) -> bool:
    return group.get("reduce") == "mean" and blocks.kind != "coordinate"


def block_means(v: Tensor, blocks) -> Tensor:
    """(count,) means over each block of a tensor of the parameter's shape."""
    exact = v.detach().to(torch.promote_types(v.dtype, torch.float32)).contiguous()
    total = torch.zeros(blocks.count, dtype=exact.dtype, device=exact.device)
    for piece in layout("blocks", blocks).pieces:
        means = view_of(exact, piece).sum((0, 2), keepdim=True) / piece.size
        narrowed(in_frame(total, "blocks"), piece.ranges).add_(means)
    return total


def _source(entries: list[dict]) -> str:
    """The optimizer that seems to have written these entries, for error messages."""
    keys = set().union(*(entry.keys() for entry in entries)) if entries else set()
    return next((name for signs, name in SIGNS if signs <= keys), "another optimizer")
