"""The driver: a torch.optim.Optimizer that runs one rule over many parameters.

A rule says what happens to one tensor. It is a subclass with

    form      how its stages see tensors: "flat" (numel,), "shaped" (as they are), or "blocks" (outer, count, run),
              where block b of a segment is x[:, b, :]
    init      tensors of state for one parameter
    scalars   numbers that are the same for all elements in one step: lr, bias corrections
    stages    what happens to one piece of a tensor, and which sums over all pieces it needs (rule.py)
    small     names of state that every process keeps whole, since it is smaller than the parameter

The driver owns everything else: groups, steps, dtypes, checks, and what is held where (sharding.py, sharded_update.py).
Nothing is updated before every check of the step has passed.
"""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lowmem.blocks import ParamBlocks
from lowmem.optim.core import param_blocks
from lowmem.optim.core.checks import NO_SPARSE, check_any_gradient, check_finite, check_model, check_state
from lowmem.optim.core.copies import Link
from lowmem.optim.core.eight_bit import is_scale
from lowmem.optim.core.hyperparameters import as_dtype, as_numbers, check_settings, one_of, refuse_unknown
from lowmem.optim.core.loading import fitted
from lowmem.optim.core.no_decay import as_patterns, check_patterns, is_picked
from lowmem.optim.core.rounding import as_exact
from lowmem.optim.core.rule import Layout, Stage, as_tensors, compiled_stages, layout, run_stages, works
from lowmem.optim.core.sharded_update import Job, local_gradient, rounds, scaled
from lowmem.optim.core.sharding import Shard, agree, is_dtensor, local, reduce_all, shard_of
from lowmem.optim.core.state_dict import complete, pack
from lowmem.optim.core.storage import Copies, check_storage, extra_state, is_coded
from lowmem.optim.core.torch_optimizer import Optimizer
from lowmem.optim.core.transfers import refuse_capture, wait_for
from lowmem.optim.core.watch import check_members


class RuleOptimizer(Optimizer):
    """Common shell of all optimizers here; see the module docstring.

    params: an nn.Module (names and blocks are read off it), a Partition, or an iterable of parameters, (name,
    parameter) pairs or groups as for any torch optimizer. model: with parameters or groups, the module they belong to,
    so that names and blocks stay known. no_decay: name patterns, or predicate(name, parameter), that are not decayed.
    rounding: "nearest" or "stochastic", how fp32 results go back into 16-bit weights and moments (the latter draws from
    torch's global generator), or "corrected": bf16 weights to nearest, with their next 8 bits kept as state. state_dtype:
    dtype of moments, default the parameter's; "int8" keeps the first moment in 8 bits (AdamMini, AdamW, Lion;
    eight_bit.py). nonfinite: "ignore", "raise" or "skip" the step when a gradient holds inf or nan (the last two read one
    number back from the device per step).
    offload: keep moments of GPU parameters in pinned CPU memory, and bring each over for its own update.

    DTensor parameters (FSDP2, tensor parallel) are updated as if they were whole: shard the model first.
    """

    form = "flat"
    uses_blocks = False
    in_codes = False  # whether its first moment has an 8-bit form
    beta_count, eps_count = 2, 1
    optional_state: tuple[tuple[str, str], ...] = ()  # (name of state, setting above 0 that needs it)
    stages: tuple[Stage, ...] = ()
    shared: dict | None = None  # scalars of one backward, kept over its updates by FusedBackward

    def __init__(
        self,
        params,
        defaults: dict,
        *,
        model: nn.Module | None = None,
        no_decay: str | Iterable[str] | Callable | None = None,
        rounding: str = "nearest",
        state_dtype: torch.dtype | str | None = None,
        nonfinite: str = "ignore",
        compile: bool = False,
        offload: bool = False,
        partition_settings: dict | None = None,
        **unknown,
    ):
        refuse_unknown(type(self), unknown)
        one_of("rounding", rounding, ("nearest", "stochastic", "corrected"))
        one_of("nonfinite", nonfinite, ("ignore", "raise", "skip"))
        defaults = {**defaults, "rounding": rounding, "state_dtype": as_dtype(state_dtype)}
        check_settings(defaults, self.beta_count, self.eps_count)
        check_storage(self, defaults)
        self._blocks: dict[nn.Parameter, ParamBlocks] = {}
        self._names: dict[nn.Parameter, str] = {}
        self._unplaced: list[nn.Parameter] = []  # those that have not trained yet, see param_blocks.py
        self._movable: set[nn.Parameter] = set()
        self._nonfinite, self._compile, self._no_decay = nonfinite, compile, as_patterns(no_decay)
        self._segments: dict = {}  # the C kernel's view of each parameter, see cpu_kernel.py
        self.plans: dict = {}  # tables of the ways over many tensors at once, see flat_blocks.py and gpu_step.py
        self._offload, self._left_out = offload, set()
        self._start_shards()
        param_blocks.follow(self, None)
        groups, everything = param_blocks.read(self, params, model, partition_settings or {})
        super().__init__(groups, defaults)
        members = [p for group in self.param_groups for p in group["params"]]
        self._movable = {p for p in members if everything and not p.requires_grad}
        if (known := self.model()) is not None:
            self._left_out = set(known.parameters()) - set(members)  # on purpose: watch.py says nothing of these
        check_patterns(self._no_decay, list(self._names.values()))
        if not any(p.requires_grad for p in members):
            warnings.warn(f"{type(self).__name__} got no trainable parameter", stacklevel=3)

    # -- groups ------------------------------------------------------------------------------------------------------

    def add_param_group(self, group: dict) -> None:
        """As in torch; also checks settings, and splits off what no_decay names into a second group."""
        group = dict(group)
        named = param_blocks.named(self, group)
        if "state_dtype" in group:
            group["state_dtype"] = as_dtype(group["state_dtype"])
        check_settings({**self.defaults, **group}, self.beta_count, self.eps_count)
        check_storage(self, {**self.defaults, **group})
        keep, rest = named, []
        if self._no_decay is not None and "weight_decay" in self.defaults and group.get("weight_decay") != 0:
            rest = [(name, p) for name, p in named if is_picked(self._no_decay, name, p)]
            excluded = {id(p) for _, p in rest}
            keep = [(name, p) for name, p in named if id(p) not in excluded]
        param_blocks.release(self, [p for _, p in named])
        for chosen, extra in ((keep, {}), (rest, {"weight_decay": 0.0})):
            if chosen or (not rest and chosen is keep):
                super().add_param_group(param_blocks.as_torch(self, {**group, **extra}, chosen))
                param_blocks.enter(self, chosen)

    def model(self) -> nn.Module | None:
        """The model the optimizer was built from, if there was one and it is still alive."""
        return None if self._model is None else self._model()

    def name(self, p: nn.Parameter) -> str:
        """The parameter's name for messages: as registered in the model, else its place in the groups."""
        return self._names.get(p) or self.blocks(p).name

    def known_as(self) -> str:
        """The name that users know: Lomo for the rule inside it."""
        return type(self).__name__.removesuffix("Rule")

    def blocks(self, p: nn.Parameter) -> ParamBlocks:
        """The blocks of one of this optimizer's parameters."""
        if p not in self._blocks and any(p is other for other in self._unplaced):
            param_blocks.place(self, [p])
        return self._blocks[p]

    # -- shards ------------------------------------------------------------------------------------------------------

    def _start_shards(self) -> None:
        self._shards: dict[nn.Parameter, Shard] = {}  # of parameters that are not whole here
        self._cut: dict[nn.Parameter, bool] = {}  # whether updating one needs sums over processes
        self._layouts: dict[nn.Parameter, Layout] = {}
        self._agreed = True

    def shard(self, p: nn.Parameter) -> Shard | None:
        """What this process holds of a parameter; None: all of it."""
        return self._shards.get(p)

    def is_cut(self, p: nn.Parameter) -> bool:
        """Whether the update of a parameter needs sums over processes. All processes must have called agree()."""
        return self._cut.get(p, False)

    def layout(self, p: nn.Parameter) -> Layout:
        """The pieces of what this process holds of a parameter."""
        if p not in self._layouts:
            shard = self._shards.get(p)
            self._layouts[p] = layout(self.form, self.blocks(p), None if shard is None else shard.boxes)
        return self._layouts[p]

    def hold(self, parts: dict[nn.Parameter, tuple[nn.Parameter, Shard]]) -> None:
        """Before the first step: train a part in place of each whole parameter, {parameter: (stored part, shard)}.

        Parts are plain tensors that hold the shard's boxes one after the other; gradients are theirs (see zero1.py).
        """
        if self.state:
            raise RuntimeError("parts must be set before the first step")
        for group in self.param_groups:
            group["params"] = [parts[p][0] for p in group["params"]]
        self._names = {parts[p][0]: name for p, name in self._names.items() if p in parts}
        self._blocks = {parts[p][0]: blocks for p, blocks in self._blocks.items() if p in parts}
        self._start_shards()
        self._shards, self._agreed = {part: shard for part, shard in parts.values()}, False
        self._unplaced = []
        param_blocks.follow(self, None)

    def agree(self) -> None:
        """Once before the first step, on every process: check that shards fit together, and find what is cut."""
        if self._agreed:
            return
        parameters = [p for group in self.param_groups for p in group["params"] if p in self._shards]
        asked = [(self.name(p), self._shards[p], self.layout(p).partial) for p in parameters]
        summing = [any(stage.sums(len(self.layout(p).frame)) for stage in self.stages) for p in parameters]
        self._cut = {p: cut and sums for p, cut, sums in zip(parameters, agree(asked), summing)}
        self._agreed = True

    def offloads(self, p: nn.Parameter, key: str) -> bool:
        """Whether one of a parameter's state tensors lives in pinned CPU memory."""
        return self._offload and p.device.type == "cuda" and not self.keeps_whole(p, key)

    def keeps_whole(self, p: nn.Parameter, key: str) -> bool:
        """Whether every process keeps all of one of a parameter's state tensors: what is smaller than the parameter."""
        return key == "step" or is_scale(key) or key in self.small(self._blocks[p])

    # -- one step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Update every parameter that has a gradient. Returns the closure's loss, if a closure is given."""
        refuse_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if torch.compiler.is_compiling() or self.check(work):
            self.update(work)
            self.finish()
        return loss

    def check(self, work: list[tuple[dict, nn.Parameter, Tensor]]) -> bool:
        """Whether to go on: raises when a gradient or the model does not fit; False when the step is to be skipped."""
        for _, p, g in work:
            if g.layout != torch.strided:
                raise RuntimeError(f"{self.name(p)}: {NO_SPARSE}")
        self.look([p for _, p, _ in work])
        if not work:
            check_any_gradient(self)
        return self._nonfinite == "ignore" or check_finite(self, work, self._shards)

    def look(self, parameters: Iterable[nn.Parameter]) -> None:
        """Before a step: blocks of what trains by now; raises where parameters or model are not what they were."""
        if self._unplaced:
            param_blocks.place(self)
            param_blocks.place(self, [p for p in self._unplaced if p.grad is not None])
        check_model(self, parameters)
        check_members(self)

    def update(self, work: list[tuple[dict, nn.Parameter, Tensor]], factor: float = 1.0) -> None:
        """Run the rule on (group, parameter, gradient) triples, gradients times factor; FusedBackward calls this too."""
        jobs = self.begin(work, factor)
        if jobs:
            for pending in rounds(self.stages, jobs):
                reduce_all(pending)

    def finish(self) -> None:
        """Wait, once per step or backward, until offloaded state is back in pinned memory and may be read."""
        if self._offload:
            wait_for(p.device for group in self.param_groups for p in group["params"])

    def begin(self, work: list[tuple[dict, nn.Parameter, Tensor]], factor: float = 1.0) -> list[Job]:
        """Update all that is complete on this process; returns what needs sums over processes (see sharded_update.py)."""
        refuse_capture()
        if not self._agreed:
            self.agree()
        states, layouts = self._known(work)
        if not all(states) or None in layouts:
            fresh = [(group, p) for (group, p, _), s, lay in zip(work, states, layouts) if not s or lay is None]
            if torch.compiler.is_compiling():
                torch.compiler.disable(self._initialise)(fresh)  # not as a decorator: that imports the compiler at once
            else:
                self._initialise(fresh)
            states, layouts = self._known(work)
        if self.optional_state:
            late = [(group, p) for (group, p, _), state in zip(work, states) if self._lacks(group, state)]
            self._initialise(late)
            for _, p in late:
                self.late(self.state[p])
        scalars: dict = {} if self.shared is None else self.shared
        ready, jobs = [], []
        if states:
            torch._foreach_add_([state["step"] for state in states], 1.0)
        for (group, p, g), state, lay in zip(work, states, layouts):
            step = state["step"] if torch.compiler.is_compiling() else state["step"].item()
            key = (id(group), step, factor)
            if key not in scalars:
                scalars[key] = {**self.scalars(as_numbers(group), step), "factor": factor}
            h = scalars[key]
            if self._shards and p in self._shards:
                g, state = local_gradient(self.name(p), p, g), {name: local(value) for name, value in state.items()}
                if self._cut[p] or is_coded(group):  # scales of 8-bit codes belong to whole parameters
                    moments = {name: value for name, value in state.items() if name != "step"}
                    stored = (local(p.detach()), scaled(g, factor), moments, self.small(self._blocks[p]), h)
                    how = (self._cut[p], self.form, self.reduction(group), group["rounding"])
                    jobs.append(Job(self._shards[p], lay, how, stored))
                    continue
                p = local(p.detach())
            if lay.held:
                ready.append((group, p, g, state, h, lay))
        for group, p, g, state, h, lay in self.fast(ready):
            self._apply(p, scaled(g, h["factor"]), state, h, lay, group["rounding"])
        return jobs

    def fast(self, ready: list) -> list:
        """Hook for a faster way over many tensors at once; returns what it left for the general way. Gradients count times
        h["factor"], which the general way multiplies in."""
        return ready

    def _known(self, work: list) -> tuple[list[dict], list[Layout | None]]:
        """State and layout of each parameter, empty and None where they are still to be made."""
        return [self.state[p] for _, p, _ in work], [self._layouts.get(p) for _, p, _ in work]

    def _initialise(self, fresh: list[tuple[dict, nn.Parameter]]) -> None:
        for group, p in fresh:
            self.layout(p)
            state = self.state[p]
            for key, value in self.fresh(p, group).items():
                if key not in state:
                    state[key] = value.cpu().pin_memory() if self.offloads(p, key) else value
            state.setdefault("step", torch.zeros((), dtype=torch.float32, device="cpu"))

    def fresh(self, p: Tensor, group: dict) -> dict[str, Tensor]:
        """The state of a parameter before its first step, on its device."""
        found = self.init(p, group, self.blocks(p), group["state_dtype"] or p.dtype)
        return found | extra_state(p, found, self.blocks(p), group)

    def _lacks(self, group: dict, state: dict) -> bool:
        """Whether a setting that was raised after the first step needs state that is not there yet."""
        return any(key not in state and group[setting] for key, setting in self.optional_state)

    def prepare(self) -> None:
        """Make the state of every trainable parameter now, as it is before the first step; for loading into it."""
        groups = [(group, p) for group in self.param_groups for p in group["params"] if p.requires_grad]
        self._initialise(groups)

    def _apply(self, p: Tensor, g: Tensor, state: dict, h: dict, lay: Layout, rounding: str) -> None:
        """All stages on one tensor: 16-bit or strided tensors go through a contiguous fp32 copy, others in place."""
        plain, small = {key: value for key, value in state.items() if key != "step"}, self.small(lay.blocks)
        check_state(lay, self.form, plain, small)
        copies = Copies(p, plain, lay)
        gradient = as_exact(g, g.device, copies.exact)
        for w in works(self.form, lay, copies.p, gradient, copies.state, small, h):
            if self._compile and not torch.compiler.is_compiling():
                compiled_stages(self.stages)(w.p, w.g, w.s, as_tensors(w.h, p.device), w.frame, w.size)
            else:
                run_stages(self.stages, w)
        copies.write(rounding, copies.largest())

    # -- what a rule brings --------------------------------------------------------------------------------------------

    @staticmethod
    def init(p: Tensor, group: dict, blocks: ParamBlocks, dtype: torch.dtype) -> dict[str, Tensor]:
        return {}

    @staticmethod
    def small(blocks: ParamBlocks) -> tuple[str, ...]:
        return ()

    @staticmethod
    def late(state: dict) -> None:
        """Optional state was made after the first step."""

    @staticmethod
    def reduction(group: dict) -> str:
        return "sum"

    @staticmethod
    def scalars(group: dict, step: float) -> dict:
        return {"lr": group["lr"], "weight_decay": group["weight_decay"]}

    # -- state ---------------------------------------------------------------------------------------------------------

    def save(self) -> dict:
        """As in torch, plus each group's block signatures. With sharded parameters every process must call it."""
        if self._shards and self._agreed:
            complete(self)
        return pack(self, super().save())

    def load(self, state_dict: dict) -> None:
        """As in torch, but what the state lacks is completed, and the saved partition must be this optimizer's.

        Storage stays this optimizer's: rounding, state_dtype, and with them the dtype of moments. The state of an
        unsharded optimizer is cut to what this process holds; the second moments of an Adam become block means.
        """
        groups, state = fitted(self, state_dict)
        self.param_groups = groups
        self.state = collections.defaultdict(dict, state)

    def __getstate__(self) -> dict:
        keys = ("_blocks", "_names", "_nonfinite", "_compile", "_offload", "_unplaced", "_movable", "_left_out")
        extra = {key: self.__dict__[key] for key in (*keys, "_partition_settings")}
        links = {"_model": Link(self.model()), "_no_decay": Link(self._no_decay)}
        return {**super().__getstate__(), **extra, **links}

    def __setstate__(self, state: dict) -> None:
        model, no_decay = state.pop("_model").target, state.pop("_no_decay").target
        super().__setstate__(state)
        self._segments, self.plans, self._no_decay = {}, {}, no_decay
        param_blocks.follow(self, model)
        self._kept = model  # a copy made alone is all that keeps its model
        self._start_shards()
        for p in (p for group in self.param_groups for p in group["params"] if is_dtensor(p) and p in self._blocks):
            self._shards[p], self._agreed = shard_of(p), False

    def state_bytes(self) -> int:
        """Bytes of all state tensors, step counters left out."""
        tensors = [v for s in self.state.values() for k, v in s.items() if isinstance(v, Tensor) and k != "step"]
        return sum(v.numel() * v.element_size() for v in tensors)
