"""The driver: a torch.optim.Optimizer that runs one rule over many parameters.

A rule says what happens to one tensor. It is a subclass with

    form      how its stages see tensors: "flat" (numel,), "shaped" (as they are), or "blocks" (outer, count, run),
              where block b of a segment is x[:, b, :]
    init      tensors of state for one parameter
    scalars   numbers that are the same for all elements in one step: lr, bias corrections
    stages    pure functions stage(w, totals) on one Work; all but the last return partial sums, which the driver adds
              over ranks (nothing to add on one) and hands to the next stages in `totals`

The driver owns everything else: groups, steps, dtypes, checks, state dictionaries. Nothing is updated before every
check of the step has passed.
"""

from __future__ import annotations

import fnmatch
import warnings
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lowmem.blocks import ParamBlocks, Partition, coordinates, one_block, partition
from lowmem.optim.rounding import round_into
from lowmem.optim.settings import check_settings, one_of
from lowmem.optim.stages import Work, as_tensors, block_pieces, compiled_stages, flat_like, run_stages

NO_SPARSE = "sparse gradients are not supported; build the embedding with sparse=False"
RECHECK_MODEL_EVERY = 64  # steps; walking all modules costs about as much as a small model's update


class RuleOptimizer(torch.optim.Optimizer):
    """Common shell of all optimizers here; see the module docstring.

    params: an nn.Module (names and blocks are read off it), a Partition, or an iterable of parameters, (name,
    parameter) pairs or groups as for any torch optimizer. model: with parameters or groups, the module they belong to,
    so that names and blocks stay known. no_decay: name patterns, or predicate(name, parameter), that are not decayed.
    rounding: "nearest" or "stochastic", how fp32 results go back into 16-bit weights and moments (the latter draws from
    torch's global generator). state_dtype: dtype of moments, default the parameter's. nonfinite: "ignore", "raise" or
    "skip" the step when a gradient holds inf or nan (the last two read one number back from the device per step).
    """

    form = "flat"
    uses_blocks = False
    beta_count = 2
    stages: tuple[Callable, ...] = ()

    def __init__(
        self,
        params,
        defaults: dict,
        *,
        model: nn.Module | None = None,
        no_decay: Iterable[str] | Callable | None = None,
        rounding: str = "nearest",
        state_dtype: torch.dtype | None = None,
        nonfinite: str = "ignore",
        compile: bool = False,
        partition_settings: dict | None = None,
    ):
        one_of("rounding", rounding, ("nearest", "stochastic"))
        one_of("nonfinite", nonfinite, ("ignore", "raise", "skip"))
        self._blocks: dict[nn.Parameter, ParamBlocks] = {}
        self._names: dict[nn.Parameter, str] = {}
        self._nonfinite, self._compile, self._no_decay = nonfinite, compile, no_decay
        self._model, self._since_check = None, 0
        if isinstance(params, nn.Module) and model is None:
            params, model = None, params
        settings = partition_settings or {}
        if isinstance(params, Partition):
            if settings:
                raise ValueError(f"{', '.join(settings)}: the partition is already made; pass these to partition()")
            known, model, params = params, params.model, None
        elif model is not None and self.uses_blocks:
            known = partition(model, **settings)
        else:
            known = None
        if model is not None:
            self._model = weakref.ref(model)
            self._names = {p: name for name, p in model.named_parameters()}
        if known is not None:
            self._blocks = {p: known[name] for name, p in known.named_parameters()}
            self._names.update({p: name for name, p in known.named_parameters()})
        if params is None:
            pairs = known.named_parameters() if known is not None else model.named_parameters()
            params = [{"params": [(name, p) for name, p in pairs if p.requires_grad]}]
        elif self.uses_blocks and known is None:
            warnings.warn(
                f"{type(self).__name__} got parameters without a model, so every tensor is one block, which is unstable "
                f"for Transformers; pass the model itself, or {type(self).__name__}(groups, model=model)",
                stacklevel=3,
            )
        defaults = {**defaults, "rounding": rounding, "state_dtype": state_dtype}
        check_settings(defaults, self.beta_count)
        super().__init__(params, defaults)
        if not any(group["params"] for group in self.param_groups):
            warnings.warn(f"{type(self).__name__} got no trainable parameter", stacklevel=3)

    # -- groups ------------------------------------------------------------------------------------------------------

    def add_param_group(self, group: dict) -> None:
        """As in torch; also checks settings, finds blocks, and splits off what no_decay names into a second group."""
        group = dict(group)
        members = group["params"]
        members = [members] if isinstance(members, Tensor) else list(members)
        named = [m if isinstance(m, tuple) else (self._names.get(m), m) for m in members]
        named = [(name if name is not None else self._names.get(p), p) for name, p in named]
        for name, p in named:
            if isinstance(p, Tensor) and p.is_complex():
                raise ValueError(
                    f"{name or 'a parameter'}: complex parameters are not supported; use torch.view_as_real"
                )
        check_settings({**self.defaults, **group}, self.beta_count)
        keep, rest = named, []
        if self._no_decay is not None and {**self.defaults, **group}.get("weight_decay", 0) != 0:
            rest = [(name, p) for name, p in named if self._excluded(name, p)]
            excluded = {id(p) for _, p in rest}
            keep = [(name, p) for name, p in named if id(p) not in excluded]
        for chosen, extra in ((keep, {}), (rest, {"weight_decay": 0.0})):
            if chosen or (not rest and chosen is keep):
                self._add({**group, **extra, "params": chosen})

    def _add(self, group: dict) -> None:
        named = group["params"]
        if any(name is None for name, _ in named) or (self.param_groups and "param_names" not in self.param_groups[0]):
            group["params"] = [p for _, p in named]
        super().add_param_group(group)
        for name, p in named:
            if name is not None:
                self._names[p] = name
            if p not in self._blocks:
                shape, label = tuple(p.shape), name or f"parameter {len(self._blocks)}"
                self._blocks[p] = one_block(label, shape) if self.uses_blocks else coordinates(label, shape)

    def _excluded(self, name: str | None, p: nn.Parameter) -> bool:
        if callable(self._no_decay):
            return bool(self._no_decay(name, p))
        if name is None:
            raise ValueError("no_decay by name needs names: pass the model, or (name, parameter) pairs")
        return any(fnmatch.fnmatch(name, pattern) for pattern in self._no_decay)

    def name(self, p: nn.Parameter) -> str:
        """The parameter's name for messages: as registered in the model, else its place in the groups."""
        return self._names.get(p) or self._blocks[p].name

    def blocks(self, p: nn.Parameter) -> ParamBlocks:
        """The blocks of one of this optimizer's parameters."""
        return self._blocks[p]

    # -- one step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Update every parameter that has a gradient. Returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if torch.compiler.is_compiling() or self.check(work):
            self.update(work)
        return loss

    def check(self, work: list[tuple[dict, nn.Parameter, Tensor]]) -> bool:
        """Whether to go on: raises when a gradient or the model does not fit; False when the step is to be skipped."""
        for _, p, g in work:
            if g.layout != torch.strided:
                raise RuntimeError(f"{self.name(p)}: {NO_SPARSE}")
        self.check_model([p for _, p, _ in work])
        return self._check_finite(work)

    def check_model(self, parameters: Iterable[nn.Parameter]) -> None:
        """Raises when a parameter's shape, or now and then the model's list of parameters, is not what it was."""
        for p in parameters:
            if tuple(p.shape) != self._blocks[p].shape:
                raise RuntimeError(
                    f"{self.name(p)}: shape is {tuple(p.shape)} but was {self._blocks[p].shape} when the optimizer was "
                    "built; build a new optimizer after changing the model"
                )
        model = self._model() if self._model is not None else None
        self._since_check -= 1
        if model is None or self._since_check > 0:
            return
        self._since_check = RECHECK_MODEL_EVERY
        owned = {p for group in self.param_groups for p in group["params"]}
        now = dict(model.named_parameters())
        gone = owned & set(self._names) - set(now.values())
        for p in gone:
            name = self._names[p]
            what = "was replaced by another tensor" if name in now else "is no longer in the model"
            raise RuntimeError(
                f"{name}: {what} since the optimizer was built; build a new optimizer after changing the model"
            )

    def _check_finite(self, work) -> bool:
        if self._nonfinite == "ignore" or not work:
            return True
        by_device: dict = {}
        for _, _, g in work:
            if g.numel():
                by_device.setdefault((g.device, g.dtype), []).append(g)
        largest = (torch._foreach_norm(gs, torch.inf) for gs in by_device.values())  # a 2-norm could overflow in fp16
        finite = all(bool(torch.stack(sizes).isfinite().all()) for sizes in largest)
        if not finite and self._nonfinite == "raise":
            name = next(self.name(p) for _, p, g in work if not bool(g.isfinite().all()))
            raise FloatingPointError(f"{name}: gradient holds inf or nan; nothing was updated")
        return finite

    def update(self, work: list[tuple[dict, nn.Parameter, Tensor]]) -> None:
        """Run the rule on (group, parameter, gradient) triples; the fused-backward driver calls this too."""
        fresh = [(group, p) for group, p, _ in work if not self.state[p]]
        if fresh:
            self._initialise(fresh)
        scalars: dict = {}
        ready = []
        for group, p, g in work:
            state = self.state[p]
            state["step"] += 1
            step = state["step"] if torch.compiler.is_compiling() else state["step"].item()
            key = (id(group), step)
            if key not in scalars:
                scalars[key] = self.scalars(_plain(group), step)
            if p.numel():
                ready.append((group, p, g, state, scalars[key]))
        for group, p, g, state, h in self.fast(ready):
            self._apply(p, g, state, h, group["rounding"])

    def fast(self, ready: list) -> list:
        """Hook for a faster way over many tensors at once; returns what it left for the general way."""
        return ready

    @torch.compiler.disable
    def _initialise(self, fresh: list[tuple[dict, nn.Parameter]]) -> None:
        for group, p in fresh:
            moments = self.init(p, group, self._blocks[p], group["state_dtype"] or p.dtype)
            self.state[p].update(step=torch.zeros((), dtype=torch.float32), **moments)

    def _apply(self, p: Tensor, g: Tensor, state: dict, h: dict, rounding: str) -> None:
        """All stages on one tensor: 16-bit or strided tensors go through a contiguous fp32 copy, others in place."""
        exact = p.dtype if p.dtype == torch.float64 else torch.float32
        plain = {key: value for key, value in state.items() if key != "step"}
        copies = {key: value.to(exact).contiguous() for key, value in plain.items()}
        weight = p.to(exact).contiguous()
        for piece in self.pieces(self._blocks[p], weight, g.to(exact).contiguous(), copies, h):
            if self._compile and not torch.compiler.is_compiling():
                compiled_stages(self.stages)(piece.p, piece.g, piece.s, as_tensors(piece.h, p.device))
            else:
                run_stages(self.stages, piece)
        if weight is not p:
            round_into(p, weight, rounding)
        for key, value in plain.items():
            if copies[key] is not value:
                round_into(value, copies[key], rounding)

    def pieces(self, blocks: ParamBlocks, p: Tensor, g: Tensor, state: dict, h: dict) -> list[Work]:
        """The tensor in the rule's form: one piece, or one per segment of blocks."""
        if self.form == "blocks":
            return block_pieces(blocks, p, g, state, h)
        if self.form == "shaped":
            return [Work(p, g, state, h)]
        return [Work(p.view(-1), g.view(-1), {key: flat_like(value, p) for key, value in state.items()}, h)]

    # -- what a rule brings --------------------------------------------------------------------------------------------

    @staticmethod
    def init(p: Tensor, group: dict, blocks: ParamBlocks, dtype: torch.dtype) -> dict[str, Tensor]:
        return {}

    @staticmethod
    def scalars(group: dict, step: float) -> dict:
        return {"lr": group["lr"], "weight_decay": group["weight_decay"]}

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """As in torch, plus each group's block signatures, so that a state of another partition is refused."""
        saved = super().state_dict()
        if self.uses_blocks:
            for group, live in zip(saved["param_groups"], self.param_groups):
                group["blocks"] = [self._blocks[p].signature for p in live["params"]]
        for group in saved["param_groups"]:
            group["state_dtype"] = str(group["state_dtype"]).removeprefix("torch.") if group["state_dtype"] else None
        return saved

    def load_state_dict(self, state_dict: dict) -> None:
        """As in torch, but every tensor keeps its saved dtype, and the saved partition must be this optimizer's."""
        state_dict = {**state_dict, "param_groups": [dict(group) for group in state_dict["param_groups"]]}
        self._check_loadable(state_dict)
        for group in state_dict["param_groups"]:
            group.pop("blocks", None)
            dtype = group.get("state_dtype")
            group["state_dtype"] = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        super().load_state_dict(state_dict)
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        live = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(saved_ids, live):
            for key, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor):
                    device = value.device if key == "step" else p.device
                    self.state[p][key] = value.detach().to(device, copy=True)

    def _check_loadable(self, state_dict: dict) -> None:
        saved_groups = state_dict["param_groups"]
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                f"the state has {len(saved_groups)} parameter groups, the optimizer {len(self.param_groups)}"
            )
        for saved, live in zip(saved_groups, self.param_groups):
            if len(saved["params"]) != len(live["params"]):
                raise ValueError(
                    f"a saved group has {len(saved['params'])} parameters, the optimizer's {len(live['params'])}"
                )
            for p, signature in zip(live["params"], saved.get("blocks", []) if self.uses_blocks else []):
                if signature != self._blocks[p].signature:
                    raise ValueError(
                        f"{self.name(p)}: the state was saved with blocks {signature}, this optimizer has "
                        f"{self._blocks[p].signature}; build it with the same partition settings"
                    )
            for i, p in zip(saved["params"], live["params"]):
                fresh = self.init(p, {**live, **saved}, self._blocks[p], p.dtype) if state_dict["state"].get(i) else {}
                for key, value in fresh.items():
                    found = state_dict["state"][i].get(key)
                    if found is None or found.shape != value.shape:
                        shape = None if found is None else tuple(found.shape)
                        raise ValueError(
                            f"{self.name(p)}: saved {key} has shape {shape}, expected {tuple(value.shape)}"
                        )

    def __getstate__(self) -> dict:
        extra = {key: self.__dict__[key] for key in ("_blocks", "_names", "_nonfinite", "_compile", "_no_decay")}
        return {**super().__getstate__(), **extra}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_model", None)
        self.__dict__.setdefault("_since_check", 0)

    def state_bytes(self) -> int:
        """Bytes of all state tensors, step counters left out."""
        tensors = [v for s in self.state.values() for k, v in s.items() if isinstance(v, Tensor) and k != "step"]
        return sum(v.numel() * v.element_size() for v in tensors)


def _plain(group: dict) -> dict:
    """The group with tensor-valued settings (lr) as numbers; kept as they are while torch.compile traces."""
    if torch.compiler.is_compiling():
        return group
    return {k: v.item() if isinstance(v, Tensor) and v.ndim == 0 else v for k, v in group.items() if k != "params"}
