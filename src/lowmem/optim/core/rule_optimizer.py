"""The driver: a torch.optim.Optimizer that runs one rule over many parameters.

A rule says what happens to one tensor; rule.Rule lists its parts. Each rule is a subclass of RuleOptimizer.

What happens in step(), in this order; nothing is changed before every check has passed:

     1  check         gradients are dense, and the model is the one that the optimizer was built from      checks.py
     2  _states       state of parameters that train for the first time               initial_state.py, the rule's init
     3  update_local  step counts go up; the step's numbers, once per group                          the rule's scalars
     4  execute       each tensor by the first way that takes it: on a CPU in C                         cpu_kernel.py
     5                on a GPU in Triton; elsewhere many tensors at once                    gpu_step.py, flat_blocks.py
     6  by_stages     what is left, tensor by tensor: fp32 copies of what is stored otherwise                 storage.py
     7                the rule's stages on views of them, eager or compiled                    rule.py, the rule's stages
     8                results rounded and put back                                                            storage.py
     9  update        parameters that are cut between processes: stages with sums between them       sharded_update.py
    10  finish        wait for offloaded state                                                              transfers.py

Members (members.py) know names and blocks of parameters, Shards (sharding.py) what is held where; saving.py has save and
load, whose work state_dict.py and loading.py do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from lowmem.blocks import ParamBlocks
from lowmem.optim.core import initial_state
from lowmem.optim.core.checks import (
    NO_SPARSE,
    check_any_gradient,
    check_finite,
    check_members,
    check_model,
    refuse_capture,
)
from lowmem.optim.core.hyperparameters import as_dtype, check_settings, one_of, refuse_unknown
from lowmem.optim.core.layout import Layout, layout
from lowmem.optim.core.members import Members
from lowmem.optim.core.no_decay import as_patterns, check_patterns, is_picked
from lowmem.optim.core.overflow import Scaled
from lowmem.optim.core.rule import Rule, Update, as_tensors, compiled_stages, run_stages, views
from lowmem.optim.core.saving import Saved
from lowmem.optim.core.sharded_update import ShardedUpdate, local_gradient, rounds
from lowmem.optim.core.sharding import Shard, Shards, local, reduce_all
from lowmem.optim.core.storage import (
    Copies,
    as_exact,
    check_codes,
    check_state,
    check_storage,
    is_coded,
    is_scale,
    scaled,
)
from lowmem.optim.core.torch_optimizer import Optimizer
from lowmem.optim.core.transfers import wait_for


class RuleOptimizer(Rule, Scaled, Saved, Optimizer):
    """Common shell of all optimizers here; see the module docstring.

    params: an nn.Module (names and blocks are read off it), a Partition, or an iterable of parameters, (name,
    parameter) pairs or groups as for any torch optimizer. model: with parameters or groups, the module they belong to,
    so that names and blocks stay known. no_decay: name patterns, or predicate(name, parameter), that are not decayed.
    rounding: "nearest" or "stochastic", how fp32 results go back into 16-bit weights and moments (the latter draws from
    torch's global generator), or "corrected": bf16 weights to nearest, with their next 8 bits kept as state. state_dtype:
    dtype of moments, default the parameter's; "int8" keeps the first moment in 8 bits (AdamMini, AdamW, Lion;
    eight_bit.py). nonfinite: "ignore", "raise" or "skip" the step when a gradient holds inf or nan (the last two read one
    number back from the device per step).
    compile: run the stages through torch.compile. offload: keep moments of GPU parameters in pinned CPU memory, and bring
    each over for its own update.

    skips_on_device: set it to True where a torch.amp.GradScaler steps, so that nothing waits for the GPU (overflow.py). After
    a step that overflowed counters in `state` are one too high until the next step or state_dict(). Frameworks ask GradScaler
    for less then: Lightning refuses to clip, Accelerate does not see that a step was left out.

    DTensor parameters (FSDP2, tensor parallel) are updated as if they were whole: shard the model first.
    """

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
        self.nonfinite, self._compile, self._offload = nonfinite, compile, offload
        self._no_decay = as_patterns(no_decay)
        self._segments: dict = {}  # the C kernel's view of each parameter, see cpu_kernel.py
        self.plans: dict = {}  # tables of the ways over many tensors at once, see flat_blocks.py and gpu_step.py
        self.shards = Shards()
        self.members = Members(type(self).__name__, self.uses_blocks, self.shards)
        groups, everything = self.members.read(params, model, partition_settings or {})
        super().__init__(groups, defaults)
        members = [p for group in self.param_groups for p in group["params"]]
        if everything:
            self.members.movable = {p for p in members if not p.requires_grad}
        if (known := self.model()) is not None:
            self.members.leave_out(set(known.parameters()) - set(members))
        check_patterns(self._no_decay, list(self.members.names.values()))
        if not any(p.requires_grad for p in members):
            warnings.warn(f"{self.known_as()} got no trainable parameter", stacklevel=3)

    # -- parameters ----------------------------------------------------------------------------------------------------

    def add_param_group(self, group: dict) -> None:
        """As in torch; also checks settings, and splits off what no_decay names into a second group."""
        group = dict(group)
        named = self.members.named(group)
        if "state_dtype" in group:
            group["state_dtype"] = as_dtype(group["state_dtype"])
        check_settings({**self.defaults, **group}, self.beta_count, self.eps_count)
        check_storage(self, {**self.defaults, **group})
        decayed, exempt = named, []
        if self._no_decay is not None and "weight_decay" in self.defaults and group.get("weight_decay") != 0:
            exempt = [(name, p) for name, p in named if is_picked(self._no_decay, name, p)]
            excluded = {id(p) for _, p in exempt}
            decayed = [(name, p) for name, p in named if id(p) not in excluded]
        self.members.release(self, [p for _, p in named])
        for chosen, extra in ((decayed, {}), (exempt, {"weight_decay": 0.0})):
            if chosen or (chosen is decayed and not exempt):
                super().add_param_group(self.members.as_torch(self.param_groups, {**group, **extra}, chosen))
                self.members.enter(chosen)

    def model(self) -> nn.Module | None:
        """The model the optimizer was built from, if there was one and it is still alive."""
        return self.members.model

    def name(self, p: nn.Parameter) -> str:
        """The parameter's name for messages: as registered in the model, else its place in the groups."""
        return self.members.names.get(p) or self.blocks(p).name

    def known_as(self) -> str:
        """The user-facing name: Lomo for the rule inside it."""
        return type(self).__name__.removesuffix("Rule")

    def blocks(self, p: nn.Parameter) -> ParamBlocks:
        """The blocks of one of this optimizer's parameters."""
        return self.members.blocks_of(p)

    # -- shards --------------------------------------------------------------------------------------------------------

    def shard(self, p: nn.Parameter) -> Shard | None:
        """What this process holds of a parameter; None: all of it."""
        return self.shards.of.get(p)

    def is_cut(self, p: nn.Parameter) -> bool:
        """Whether the update of a parameter needs sums over processes. All processes must have called check_shards()."""
        return self.shards.cut.get(p, False)

    def layout(self, p: nn.Parameter) -> Layout:
        """The pieces of what this process holds of a parameter."""
        layouts = self.shards.layouts
        if p not in layouts:
            shard = self.shard(p)
            layouts[p] = layout(self.form, self.blocks(p), None if shard is None else shard.boxes)
        return layouts[p]

    def replace_params(self, parts: dict[nn.Parameter, tuple[nn.Parameter, Shard]]) -> None:
        """Before the first step: train a part in place of each whole parameter, {parameter: (stored part, shard)}.

        Parts are plain tensors that hold the shard's boxes one after the other; gradients are theirs (see zero1.py).
        """
        if self.state:
            raise RuntimeError("parts must be set before the first step")
        for group in self.param_groups:
            group["params"] = [parts[p][0] for p in group["params"]]
        self.members.replace({p: part for p, (part, _) in parts.items()})
        self.shards.reset({part: shard for part, shard in parts.values()})

    def check_shards(self) -> None:
        """Once before the first step, on every process: check that shards fit together, and find what is cut."""
        if self.shards.checked:
            return
        parameters = [p for group in self.param_groups for p in group["params"] if p in self.shards.of]
        layouts = [self.layout(p) for p in parameters]
        sums = [any(stage.axes(len(lay.frame)) for stage in self.stages) for lay in layouts]
        self.shards.check([(p, self.name(p), lay.partial, s) for p, lay, s in zip(parameters, layouts, sums)])

    def offloads(self, p: nn.Parameter, key: str) -> bool:
        """Whether one of a parameter's state tensors lives in pinned CPU memory."""
        return self._offload and p.device.type == "cuda" and not self.keeps_whole(p, key)

    def keeps_whole(self, p: nn.Parameter, key: str) -> bool:
        """Whether every process keeps all of one of a parameter's state tensors: what is smaller than the parameter."""
        return self.is_small(key, self.blocks(p))

    def is_small(self, key: str, blocks: ParamBlocks) -> bool:
        """Whether a state tensor of a parameter with these blocks is smaller than the parameter."""
        return key == "step" or is_scale(key) or key in self.replicated(blocks)

    # -- one step ------------------------------------------------------------------------------------------------------

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
            scaled = self._settle is not None or getattr(self, "found_inf", None) is not None  # by a GradScaler
            (self.update_scaled if scaled else self.update)(work)
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
        return self.nonfinite == "ignore" or check_finite(self, work)

    def look(self, parameters: Iterable[nn.Parameter]) -> None:
        """Before a step: blocks of what trains by now; raises where parameters or model are not what they were."""
        if self.members.without_blocks:
            self.members.find_blocks()
            self.members.find_blocks([p for p in self.members.without_blocks if p.grad is not None])
        check_model(self, parameters)
        check_members(self)

    def update(self, work: list[tuple[dict, nn.Parameter, Tensor]], factor: float = 1.0) -> None:
        """Run the rule on (group, parameter, gradient) triples, gradients times factor; FusedBackward calls this too."""
        cut = self.update_local(work, factor)
        if cut:
            for pending in rounds(self.stages, cut):
                reduce_all(pending)

    def finish(self) -> None:
        """Wait, once per step or backward, until offloaded state is back in pinned memory and may be read."""
        if self._offload:
            wait_for(p.device for group in self.param_groups for p in group["params"])

    def update_local(self, work: list[tuple[dict, nn.Parameter, Tensor]], factor: float = 1.0) -> list[ShardedUpdate]:
        """Update all that is complete on this process; returns what needs sums over processes (see sharded_update.py)."""
        refuse_capture()
        self.check_shards()
        states, layouts = self._states(work)
        if any(group["state_dtype"] == torch.int8 for group in self.param_groups):
            for (_, p, _), state in zip(work, states):
                check_codes(self.name(p), state)
        hypers: dict = {} if self.shared is None else self.shared
        shards, here, cut = self.shards.of, [], []
        counters = [state["step"] for state in states]
        if self.overflow is not None:
            self.overflow.ahead += counters
        for (group, p, g), state, lay, step in zip(work, states, layouts, counted(counters)):
            key = (id(group), step, factor)
            if key not in hypers:
                hypers[key] = {**self.scalars(as_numbers(group), step), "factor": factor}
            hyper = hypers[key]
            if shards and p in shards:
                g, state = local_gradient(self.name(p), p, g), {name: local(value) for name, value in state.items()}
                if self.shards.cut[p] or is_coded(group):  # scales of 8-bit codes belong to whole parameters
                    update = Update(group, local(p.detach()), scaled(g, factor), state, hyper, lay)
                    cut.append(ShardedUpdate(self, update, shards[p], self.shards.cut[p]))
                    continue
                p = local(p.detach())
            if lay.held:
                here.append(Update(group, p, g, state, hyper, lay))
        by_stages = self.by_stages if self.overflow is None else partial(self.overflow.guarded, self.by_stages)
        left = self.execute(here)
        for update in left:
            self.check_state(update)
        for update in left:
            by_stages(update)
        return cut

    def check_state(self, update: Update) -> None:
        """Raises where the state of a tensor has another form than its layout says; before anything is changed."""
        _, _, _, state, _, lay = update
        plain = {key: value for key, value in state.items() if key != "step"}
        check_state(lay, self.form, plain, self.replicated(lay.blocks))

    def execute(self, updates: list[Update]) -> list[Update]:
        """Make updates by the faster ways that there are for their devices; returns what is left for the stages."""
        if torch.compiler.is_compiling() or self._compile:
            return updates
        if self.overflow is not None:
            for way in self.ways_that_skip:
                updates = way(self, updates) if updates else []
            return updates
        on_cpu = [update for update in updates if update.param.is_cpu]
        elsewhere = [update for update in updates if not update.param.is_cpu] if len(on_cpu) < len(updates) else []
        coded = any(group["state_dtype"] == torch.int8 for group in self.param_groups)
        for way in (*(self.ways_of_codes if coded else ()), *self.ways_on_cpu):
            on_cpu = way(self, on_cpu) if on_cpu else []
        for way in self.ways_elsewhere:
            elsewhere = way(self, elsewhere) if elsewhere else []
        return on_cpu + elsewhere

    def by_stages(self, update: Update) -> None:
        """All stages on one tensor: 16-bit or strided tensors go through a contiguous fp32 copy, others in place."""
        _, p, g, state, hyper, lay = update
        plain, replicated = {key: value for key, value in state.items() if key != "step"}, self.replicated(lay.blocks)
        copies = Copies(p, plain, lay)
        gradient = as_exact(scaled(g, hyper["factor"]), g.device, copies.exact)
        for view in views(self.form, lay, copies.p, gradient, copies.state, replicated, hyper):
            if self._compile and not torch.compiler.is_compiling():
                numbers = as_tensors(view.hyper, p.device)
                compiled_stages(self.stages)(view.param, view.grad, view.state, numbers, view.frame, view.size)
            else:
                run_stages(self.stages, view)
        copies.write(update.group["rounding"], copies.largest())

    def _states(self, work: list[tuple[dict, nn.Parameter, Tensor]]) -> tuple[list[dict], list[Layout]]:
        """State and layout of each parameter, made where they are not there yet."""
        states, layouts = self._known(work)
        if not all(states) or None in layouts:
            fresh = [(group, p) for (group, p, _), s, lay in zip(work, states, layouts) if not s or lay is None]
            make = initial_state.make
            if torch.compiler.is_compiling():
                make = torch.compiler.disable(make)  # not as a decorator: that imports the compiler at once
            make(self, fresh)
            states, layouts = self._known(work)
        if any(group[setting] for group in self.param_groups for _, setting in self.optional_state):
            initial_state.add_late(self, [(group, p) for group, p, _ in work])
        return states, layouts

    def _known(self, work: list) -> tuple[list[dict], list[Layout | None]]:
        """State and layout of each parameter, empty and None where they are still to be made."""
        return [self.state[p] for _, p, _ in work], [self.shards.layouts.get(p) for _, p, _ in work]

    def prepare(self) -> None:
        """Make the state of every trainable parameter now, as it is before the first step; for loading into it."""
        initial_state.make(
            self, [(group, p) for group in self.param_groups for p in group["params"] if p.requires_grad]
        )

    def state_bytes(self) -> int:
        """Bytes of all state tensors, step counters left out."""
        tensors = [v for s in self.state.values() for k, v in s.items() if isinstance(v, Tensor) and k != "step"]
        return sum(v.numel() * v.element_size() for v in tensors)


def counted(counters: list[Tensor]) -> list:
    """Step counters go up by one; what they are then, as numbers, or as themselves while torch.compile traces."""
    if all(type(counter) is Tensor for counter in counters) and not torch.compiler.is_compiling():
        for counter in counters:
            counter.fill_(counter.item() + 1.0)  # on a CPU less than half of what an addition costs
    else:
        torch._foreach_add_(counters, 1.0)
    return counters if torch.compiler.is_compiling() else [counter.item() for counter in counters]


def as_numbers(group: dict) -> dict:
    """The settings of a group, tensor-valued ones (lr) as numbers; the group as it is while torch.compile traces."""
    if torch.compiler.is_compiling():
        return group
    scalar = {k: v.item() for k, v in group.items() if isinstance(v, torch.Tensor) and v.numel() == 1}
    return {k: scalar.get(k, v) for k, v in group.items() if k != "params"}
