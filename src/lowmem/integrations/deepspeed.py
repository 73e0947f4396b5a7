"""Any rule of this package under DeepSpeed, with ZeRO stages 1, 2 and 3 or without ZeRO.

DeepSpeed joins a group's parameters into one flat tensor, of which each rank updates a slice that starts and ends
anywhere, and hands the optimizer nothing but that slice. After deepspeed.initialize, attach() reads off the engine
which part of which parameter lies where, so that blocks are whole again: sums of cut ones go over the ranks.

    optimizer = ForDeepSpeed(AdamMini(model, lr=1e-3))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    optimizer.attach(engine)

Without ZeRO (stage 0) DeepSpeed steps the model's own parameters, or whole fp32 copies of 16-bit ones; attach() then has
nothing to find. With ZeRO the configuration needs "zero_allow_untested_optimizer": true, and with CPU offload
"zero_force_ds_cpu_optimizer": false.
Tried with DeepSpeed 0.19.8. DeepSpeed saves the state of each rank by itself, so a checkpoint is read by as many ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowmem.optim.core.rule_optimizer import RuleOptimizer
from lowmem.optim.core.sharding import Shard, flat_boxes

ATTACH = "call optimizer.attach(engine) after deepspeed.initialize"


class ForDeepSpeed(torch.optim.Optimizer):
    """A client optimizer for deepspeed.initialize; see the module's docstring.

    inner: an optimizer of this package with step(), built from the model before deepspeed.initialize. Clipping, loss
    scale, accumulation and learning-rate schedules are DeepSpeed's.
    """

    def __init__(self, inner: RuleOptimizer):
        if not isinstance(inner, RuleOptimizer):
            raise TypeError(
                f"{type(inner).__name__} works inside backward, where DeepSpeed keeps the gradients; give ForDeepSpeed an "
                "optimizer with step(), or use fully_shard"
            )
        members = [p for group in inner.param_groups for p in group["params"]]
        partitioned = next((p for p in members if hasattr(p, "ds_id")), None)
        if partitioned is not None:
            raise ValueError(
                f"{inner.name(partitioned)}: deepspeed.zero.Init has already partitioned it, so its blocks cannot be found; "
                "build the model and the optimizer outside of it"
            )
        self.inner = inner
        # By id of a flat tensor: (part, where it starts) of every parameter of its group.
        self._held: dict[int, list[tuple[nn.Parameter, int]]] = {}
        outside = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in inner.param_groups]
        super().__init__(outside, inner.defaults)
        self._groups = list(zip(self.param_groups, inner.param_groups))
        self._members = [list(group["params"]) for group in self.param_groups]

    def attach(self, engine) -> None:
        """Find where the parameters lie in the flat tensors of engine.optimizer. Once, on every rank."""
        zero = engine.optimizer
        if getattr(zero, "optimizer", zero) is self and self._takes_whole():
            return
        if hasattr(zero, "single_partition_of_fp32_groups"):
            found = _stage_1_and_2(zero)
        elif hasattr(zero, "fp32_partitioned_groups_flat"):
            found = _stage_3(zero)
        else:
            raise TypeError(f"{type(zero).__name__} is not one of the optimizers of DeepSpeed's ZeRO stages 1 to 3")
        self._hold(found)

    def _takes_whole(self) -> bool:
        """Without ZeRO: whether every group holds its parameters, or whole copies of them; they are held from then on."""
        groups = [(outside["params"], members) for (outside, _), members in zip(self._groups, self._members)]
        shapes = [([t.shape for t in tensors], [p.shape for p in members]) for tensors, members in groups]
        if not self._held and all(here == there for here, there in shapes):
            alone = ((tensor, p) for tensors, members in groups for tensor, p in zip(tensors, members))
            self._hold([(tensor, [(p, tuple(p.shape), 0, p.numel(), 0)], None) for tensor, p in alone])
        return bool(self._held)

    def _hold(self, found: list[tuple[Tensor, list, object]]) -> None:
        """Let the inner optimizer train parts of tensors, as _stage_1_and_2 finds them; no process group: no other has any."""
        parts = {}
        for flat, members, group in found:
            held = self._held[id(flat)] = []
            for p, shape, first, length, offset in members:
                part = nn.Parameter(_row(flat.detach())[offset : offset + length])
                parts[p] = (part, Shard(shape, flat_boxes(shape, first, first + length), (group,) if group else ()))
                held.append((part, offset))
        for group in self.inner.param_groups:  # what does not train is in no flat tensor
            group["params"] = [p for p in group["params"] if p in parts]
        self.inner.replace_params(parts)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update the groups that DeepSpeed shows at the moment: all, one, or a sub-group of one."""
        if not self._held and self._takes_whole() and not self._has_gradient():
            self.inner.prepare()  # DeepSpeed makes state by a step on gradients of zero, which is no step
            return
        for group in self.param_groups:
            for flat in group["params"]:
                if id(flat) not in self._held:
                    raise RuntimeError(f"DeepSpeed has replaced the parameters by flat tensors; {ATTACH}")
                for part, offset in self._held[id(flat)]:
                    here = slice(offset, offset + part.numel())
                    part.data = _row(flat.detach())[here]  # DeepSpeed may have moved it
                    part.grad = None if flat.grad is None else _row(flat.grad)[here]
        for outside, inside in self._groups:
            inside.update({key: value for key, value in outside.items() if key in inside and key != "params"})
        self.inner.step()
        self.inner.zero_grad()

    def _has_gradient(self) -> bool:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return any(bool(g.any()) for g in gradients)

    def state_dict(self) -> dict:
        """This rank's state. Collective."""
        saved = self.inner.state_dict()
        return {**saved, "ranges": self._ranges()}

    def load_state_dict(self, state_dict: dict) -> None:
        """State that a rank in the same place saved; ValueError for another."""
        state_dict = dict(state_dict)
        saved, here = state_dict.pop("ranges", None), self._ranges()
        if saved != here:
            name = next((n for n in here if saved is None or saved.get(n) != here[n]), "a parameter")
            raise ValueError(
                f"{name}: the saved state belongs to another part of it; continue with the number of ranks, ZeRO stage and "
                "sub-group size that it was saved with"
            )
        self.inner.load_state_dict(state_dict)
        for outside, inside in self._groups:
            outside.update({key: value for key, value in inside.items() if key != "params"})

    def _ranges(self) -> dict[str, list]:
        if not self._held:
            raise RuntimeError(f"no parameter is known yet; {ATTACH}")
        parts = [part for held in self._held.values() for part, _ in held]
        return {self.inner.name(p): [[box.start, box.lengths] for box in self.inner.shard(p).boxes] for p in parts}


def _row(tensor: Tensor) -> Tensor:
    """A tensor as one row; a view."""
    return tensor.view(-1)


def _stage_1_and_2(zero) -> list[tuple[Tensor, list, object]]:
    """(flat tensor, [(parameter, shape, first element, length, offset in the flat tensor)], process group) by group."""
    found = []
    for i, (flat, group) in enumerate(zip(zero.single_partition_of_fp32_groups, zero.real_dp_process_group)):
        size, places = flat.numel(), []
        start = torch.distributed.get_rank(group) * size  # of this rank's slice
        for p, at in zip(zero.round_robin_bit16_groups[i], zero.round_robin_bit16_offsets[i]):
            first, last = (min(max(end - at, 0), p.numel()) for end in (start, start + size))
            places.append((p, tuple(p.shape), first, last - first, max(at - start, 0) if last > first else 0))
        found.append((flat, places, group))
    return found


def _stage_3(zero) -> list[tuple[Tensor, list, object]]:
    """The same by sub-group; each parameter is cut into equal slices, one per rank, of which the last is padded."""
    if zero.swap_optimizer or (zero.offload_optimizer and zero.partial_offload != 1.0):
        raise TypeError(
            "optimizer state on NVMe, or only partly on the CPU, is not supported; offload all of it to cpu"
        )
    found = []
    for i, (flat, members) in enumerate(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups)):
        group, places, offset = zero.sub_group_process_groups[i], [], 0
        rank = torch.distributed.get_rank(group)
        for p in members:
            size = p.partition_numel()
            first = min(rank * size, p.ds_numel)
            places.append((p, tuple(p.ds_shape), first, min(size, p.ds_numel - first), offset))
            offset += size
        found.append((flat, places, group))
    return found
