"""Optimizer state split over data-parallel ranks (ZeRO stage 1, Rajbhandari et al., arXiv 1910.02054), for any rule here.

Each rank updates an equal share of all elements in flattened order, then all ranks gather the new weights. Works on
models that are whole on every rank, with or without DistributedDataParallel; gradients must be equal on all ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowmem.optim.core import data_parallel
from lowmem.optim.core.checks import check_members
from lowmem.optim.core.rule_optimizer import RuleOptimizer
from lowmem.optim.core.sharding import Shard, flat_boxes
from lowmem.optim.core.torch_optimizer import Optimizer


class Zero1(Optimizer):
    """Shard an optimizer's state: opt = Zero1(AdamMini(model, lr=3e-4)); then as usual. All ranks must step together.

    inner: an optimizer of this package that has not stepped yet. process_group: the data-parallel group, default all
    ranks. average: also average gradients, for models without DDP. state_dict() is collective and equals the one of
    an unsharded optimizer, so it loads at any number of ranks, also at one.
    """

    def __init__(self, inner: RuleOptimizer, process_group=None, average: bool = False):
        if not isinstance(inner, RuleOptimizer):
            raise TypeError(f"Zero1 wraps an optimizer of lowmem.optim with step(), not {type(inner).__name__}")
        if not data_parallel.is_distributed():
            raise RuntimeError("Zero1 needs torch.distributed; call init_process_group first (start with torchrun)")
        if any(inner.shard(p) for group in inner.param_groups for p in group["params"]):
            raise RuntimeError("the model is sharded already, and its optimizer state with it; drop Zero1")
        self.process_group = process_group if process_group is not None else dist.group.WORLD
        self.average, self.inner = average, inner
        self._frozen = [p for group in inner.param_groups for p in group["params"] if not p.requires_grad]
        self.members = inner.members.of_whole_params(self._frozen)
        for group in inner.param_groups:  # frozen weights are not sharded
            trained = [i for i, p in enumerate(group["params"]) if p.requires_grad]
            for key in {"params", "param_names"} & group.keys():
                group[key] = [group[key][i] for i in trained]
        members = [p for group in inner.param_groups for p in group["params"]]
        world, rank = dist.get_world_size(self.process_group), dist.get_rank(self.process_group)
        total = sum(p.numel() for p in members)
        self._ends = [total * r // world for r in range(world + 1)]
        self._whole, at, parts = members, 0, {}
        self._starts = {}
        for p in members:
            a, b = (min(max(end - at, 0), p.numel()) for end in self._ends[rank : rank + 2])
            part = nn.Parameter(self._flat(p)[a:b], requires_grad=p.requires_grad)  # shares memory with p
            parts[p] = (part, Shard(tuple(p.shape), flat_boxes(p.shape, a, b), (self.process_group,)))
            self._starts[p] = at
            at += p.numel()
        self._parts = parts
        outside = [{**group, "params": list(group["params"])} for group in inner.param_groups]  # of whole parameters
        inner.replace_params(parts)
        super().__init__(outside, inner.defaults)

    @property
    def state(self):
        """The inner optimizer's, of this rank's parts; also when it is assigned."""
        return self.inner.state

    @state.setter
    def state(self, value) -> None:
        if "param_groups" in self.__dict__:  # torch's constructor makes an empty one
            self.inner.state = value

    def model(self) -> nn.Module | None:
        """See RuleOptimizer.model."""
        return self.members.model

    def _flat(self, p: nn.Parameter) -> Tensor:
        """A whole parameter as the flat tensor that is sharded; a view."""
        if not p.is_contiguous():
            raise ValueError(
                f"{self.members.names.get(p, 'a parameter')}: is not contiguous; call .contiguous() on its data first"
            )
        return p.detach().view(-1)

    def _look(self) -> None:
        """Before a step: parts are where the whole parameters are now (.data may have been rebound)."""
        unfrozen = next((p for p in self._frozen if p.requires_grad), None)
        if unfrozen is not None:
            raise RuntimeError(
                f"{self.members.names.get(unfrozen, 'a parameter')}: was frozen when Zero1 sharded the parameters; build the "
                "optimizer again after unfreezing"
            )
        check_members(self)
        for p, (part, shard) in self._parts.items():
            first = self._first(p)
            if (shard.numel and part.data_ptr() != p.data_ptr() + first * p.element_size()) or part.dtype != p.dtype:
                part.data = self._flat(p)[first : first + shard.numel]

    def add_param_group(self, group: dict) -> None:
        """Refused after construction: every rank's share would move."""
        if "_parts" in self.__dict__ and len(self.param_groups) >= len(self.inner.param_groups):
            raise RuntimeError("Zero1 cannot take further parameter groups; give all of them to the inner optimizer")
        super().add_param_group(group)

    @torch.no_grad()
    def step(self, closure=None):
        """Update this rank's share, then gather those of all ranks. Returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._look()
        self._pass_on()
        here = [p.grad is not None for p in self._whole]
        used = data_parallel.presence(here, self._whole[0].device, self.process_group)
        for count, (p, (part, shard)) in zip(used, self._parts.items()):
            if count and self.average:
                p.grad = data_parallel.average(torch.zeros_like(p) if p.grad is None else p.grad, self.process_group)
            elif 0 < count < dist.get_world_size(self.process_group):
                raise RuntimeError(
                    f"{self.inner.name(part)}: has a gradient on {count} processes only; average them first"
                )
            first = self._first(p)
            part.grad = None if p.grad is None else p.grad.contiguous().view(-1)[first : first + shard.numel]
        self.inner.step()
        for part, _ in self._parts.values():
            part.grad = None
        self._gather({p: p.detach().view(-1) for p in self._whole})
        return loss

    def _pass_on(self) -> None:
        """Pass settings that schedulers and users changed in these groups on to the inner optimizer's."""
        now = [p for group in self.param_groups for p in group["params"]]
        if len(self.param_groups) != len(self.inner.param_groups) or list(map(id, now)) != list(map(id, self._whole)):
            raise RuntimeError("the groups hold other parameters than Zero1 has sharded; build the optimizer again")
        for group, inside in zip(self.param_groups, self.inner.param_groups):
            inside.update({key: value for key, value in group.items() if key != "params"})

    def _first(self, p: Tensor) -> int:
        rank = dist.get_rank(self.process_group)
        return min(max(self._ends[rank] - self._starts[p], 0), p.numel())

    def _gather(self, flat: dict[Tensor, Tensor]) -> None:
        """Fill in all of some whole tensors, {parameter: flattened tensor}, of which this rank has its share."""
        world, rank = dist.get_world_size(self.process_group), dist.get_rank(self.process_group)
        kinds: dict = {}
        for p, x in flat.items():
            kinds.setdefault((x.dtype, x.device), []).append((p, x))
        for (dtype, device), pairs in kinds.items():
            views = [
                [
                    x[
                        min(max(self._ends[r] - self._starts[p], 0), x.numel()) : max(
                            self._ends[r + 1] - self._starts[p], 0
                        )
                    ]
                    for p, x in pairs
                ]
                for r in range(world)
            ]
            sizes = [sum(v.numel() for v in of_rank) for of_rank in views]
            longest = max(sizes)
            send = torch.zeros(longest, dtype=dtype, device=device)
            torch.cat(views[rank], out=send[: sizes[rank]]) if sizes[rank] else None
            received = [torch.empty_like(send) for _ in range(world)]
            dist.all_gather(received, send, group=self.process_group)
            for r in range(world):
                for v, new in zip(views[r], received[r][: sizes[r]].split([v.numel() for v in views[r]])):
                    if r != rank:
                        v.copy_(new)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch, for the gradients of the whole parameters."""
        for p in self._whole:
            if set_to_none or p.grad is None:
                p.grad = None
            else:
                p.grad.zero_()

    def save(self) -> dict:
        """The state of all ranks, as an unsharded optimizer has it. Every rank must call it; each gets the whole."""
        self._pass_on()
        saved = self.inner.state_dict()
        names = [i for group in saved["param_groups"] for i in group["params"]]
        whole: dict = {key: {} for p in self._whole for key in self._split_keys(p)}
        for p in self._whole:
            for key in self._split_keys(p):
                full = torch.zeros(p.numel(), dtype=self._state(p)[key].dtype, device=self._state(p)[key].device)
                first = self._first(p)
                full[first : first + self._parts[p][1].numel] = self._state(p)[key]
                whole[key][p] = full
        for key in sorted(whole):
            self._gather(whole[key])
        state = {}
        for i, p in zip(names, self._whole):
            if self._state(p):
                split = {key: whole[key][p].view(p.shape) for key in self._split_keys(p)}
                state[i] = {**self._state(p), **split}
        return {**saved, "state": state}

    def _state(self, p: Tensor) -> dict:
        return self.inner.state.get(self._parts[p][0], {})

    def _split_keys(self, p: Tensor) -> list[str]:
        return [key for key in self._state(p) if not self.inner.keeps_whole(self._parts[p][0], key)]

    def load(self, state_dict: dict) -> None:
        """Take this rank's share of an unsharded optimizer's state (or of any Zero1's)."""
        self.inner.load_state_dict(state_dict)
        for group, inside in zip(self.param_groups, self.inner.param_groups):
            group.update({key: value for key, value in inside.items() if key != "params"})

    def state_bytes(self) -> int:
        """Bytes of the state tensors on this rank."""
        return self.inner.state_bytes()
