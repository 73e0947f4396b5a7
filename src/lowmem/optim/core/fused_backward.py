"""Any rule inside backward: each gradient is used and freed as soon as it is complete (LOMO, arXiv 2306.09782).

A post-accumulate-grad hook on every parameter hands its gradient to the rule and drops it, so that one gradient is
alive at a time. What needs all gradients first (global norm clipping, dynamic loss scaling, and the check of reentrant
checkpoints) is a first pass that only measures: either over the same graph, kept, or by running the closure again.

Official code: lomo-optim 0.1.1. Different on purpose: one hook call handles its own parameter (the official hook scans
all parameters and runs one gradient late); the loss scale grows again after clean steps; weights that a reentrant
checkpoint would update in the middle of backward are refused; state lives in state_dict().
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lowmem.optim.core import backward_pass, data_parallel
from lowmem.optim.core.autograd_graph import Graph, evaluate, random_states, read_graph, restore
from lowmem.optim.core.backward_pass import Pass
from lowmem.optim.core.checks import is_rehearsal, refuse_capture
from lowmem.optim.core.clipping import check_clipping
from lowmem.optim.core.hooks import PLAIN_BACKWARD, HookedParams, check_empty, owner, wrapped_in
from lowmem.optim.core.loss_scale import LossScale
from lowmem.optim.core.rule_optimizer import RuleOptimizer
from lowmem.optim.core.torch_optimizer import Optimizer


def uncompiled(method: Callable) -> Callable:
    """The method, never traced by torch.compile, which drops (torch 2.13) or refuses (2.11) what is written on an optimizer."""

    @functools.wraps(method)
    def run(*arguments, **keywords):
        plain = torch.compiler.disable(method) if torch.compiler.is_compiling() else method
        return plain(*arguments, **keywords)

    return run


class FusedBackward(Optimizer):
    """Run an optimizer of this package inside backward: opt.backward(loss) in place of loss.backward(); opt.step().

    inner: the optimizer whose rule, groups and state are used; its step() is not called any more.
    max_grad_norm: clip the global gradient norm (two passes). grouped_norm: clip each tensor's gradient by its own norm
    (one pass; biased, the paper's future work). clip_value: clamp gradients, before the norm coefficient as the
    official code does. loss_scale: None, a number, or "dynamic" (doubles after 1000 clean steps, halves and skips on
    overflow; needs the first pass).

    opt.backward(loss) keeps the graph for the first pass; opt.backward(closure) calls closure() -> loss once per pass,
    with torch's same random numbers, and keeps nothing (buffers that the forward changes, like batch norm's running
    means, change once per pass). Gradient accumulation is impossible by design. step() only checks that a backward
    happened, so that training loops and lr schedulers stay as they are.

    Parameters that belong to no fused optimizer get their .grad as usual, once and without the loss scale, so adapters
    may have an optimizer of their own: fused.backward(loss); fused.step(); adamw.step(); adamw.zero_grad(). The clip
    norm covers only the fused parameters. Two fused optimizers on one loss are refused: use parameter groups.

    process_group: data-parallel training without the DDP wrapper: each gradient is averaged over the group in its hook.
    Under fully_shard leave it out; with max_grad_norm (or anything else that measures first) pass a closure there.
    False: several processes, each with a model of its own.

    A weight that reentrant checkpoints use in several places would change in the middle of backward. So a graph with
    such checkpoints is measured once before its first update, and refused; every new graph is measured again. A
    checkpointed function that itself picks other weights from step to step can be caught only afterwards, by an error.

    What a checkpoint that is not reentrant recomputes reads the weights as they are by then. Those whose gradients it
    computes are old until it has run; one that it uses through .detach() alone may be new, and nothing can tell: compute
    such a copy before the checkpoint.
    """

    def __init__(
        self,
        inner: RuleOptimizer,
        max_grad_norm: float | None = None,
        grouped_norm: float | None = None,
        clip_value: float | None = None,
        loss_scale: float | str | None = None,
        process_group=None,
    ):
        if not isinstance(inner, RuleOptimizer):
            raise TypeError(f"FusedBackward wraps an optimizer of lowmem.optim, not {type(inner).__name__}")
        check_clipping(loss_scale, max_grad_norm=max_grad_norm, grouped_norm=grouped_norm, clip_value=clip_value)
        data_parallel.check_setting(inner, process_group)
        self.inner, self.process_group = inner, process_group
        self.max_grad_norm, self.grouped_norm, self.clip_value = max_grad_norm, grouped_norm, clip_value
        self.loss_scale = LossScale(loss_scale)
        self.skipped = False  # whether the last backward overflowed and updated nothing
        self.grad_norm: float | None = None  # global gradient norm of the last first pass
        self._stepped, self._closed, self._paused = True, False, False
        for p in (p for group in inner.param_groups for p in group["params"]):
            if (other := owner(p)) is not None:  # the newest takes over; the older one raises when it is used
                other.close()
        super().__init__(inner.param_groups, inner.defaults)
        self._start()

    def __copy__(self):
        """Always TypeError: a shallow copy would share the hooks on the weights, so that either would stop the other."""
        raise TypeError(
            f"{type(self).__name__} lies in the gradients of its weights, which two cannot share; copy it with its model: "
            "copy.deepcopy((model, optimizer))"
        )

    def _start(self) -> None:
        """What is not saved: hooks, and what is known of this process's graphs."""
        self.current: Pass | None = None  # while a backward runs
        self._proven: set[tuple] = set()  # graphs with reentrant checkpoints in which every weight fired once
        self.params = HookedParams(self)
        self._watch = data_parallel.watch_ddp(self.inner)
        self._refresh()

    def _refresh(self) -> None:
        """Update the hooks to what trains now: groups may have changed, or which weights are frozen."""
        self.params.read(self.param_groups, self.inner.model())
        if not self._closed:
            self.params.hook()

    @property
    def scale(self) -> float:
        """The loss's factor; it may be set."""
        return self.loss_scale.value

    @scale.setter
    def scale(self, value: float) -> None:
        self.loss_scale.value = value

    @property
    def state(self):
        """The inner optimizer's, also when it is assigned."""
        return self.inner.state

    @state.setter
    def state(self, value) -> None:
        if "params" in self.__dict__:  # torch's constructor makes an empty one
            self.inner.state = value

    @property
    def param_groups(self) -> list[dict]:
        """The inner optimizer's, also when they are assigned."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict]) -> None:
        if "params" in self.__dict__:
            self.inner.param_groups = value
            self.params.read(value, self.inner.model())

    # -- backward --------------------------------------------------------------------------------------------------------

    @uncompiled
    def backward(self, loss: Tensor | Callable[[], Tensor]) -> Tensor:
        """Backward and update in one. loss: a scalar tensor, or a closure that returns one. Returns the loss, detached."""
        if (wrapped := wrapped_in(self)) is not None:
            return wrapped.backward(loss)
        refuse_capture()
        if not self._stepped:
            raise RuntimeError(
                "backward was called twice without step(): gradients are used up as they appear, so they cannot be "
                "accumulated; use a larger batch, or call opt.step() after each opt.backward(loss), also before a `continue`"
            )
        if self._closed or self._paused or self.current is not None:
            closed = "after opt.close(), or after another optimizer took over its parameters; build a new one"
            where = closed if self._closed else "inside opt.paused(); leave it first"
            raise RuntimeError(f"opt.backward was called {where}")
        closure = loss if callable(loss) else None
        self.params.read(self.param_groups, self.inner.model())
        left = next((p for p in self.params.group_of if p.grad is not None), None)
        if left is not None:
            raise RuntimeError(f"{self.inner.name(left)}: already holds a gradient; call opt.zero_grad() first")
        self.inner.look(self.params.trained)
        data_parallel.check_averaging(self.inner, self.process_group)
        self.inner.check_shards()
        self._refresh()
        random = random_states(self.params.group_of) if closure is not None else None
        if closure is not None:
            loss = evaluate(closure)
            self._refresh()  # a lazy layer has its weights by now
        graph = read_graph(self, loss)
        data_parallel.check_same_leaves(self.inner, list(self.params.group_of), graph.leaves, self.process_group)
        self.skipped = False
        unproven = bool(graph.segments) and graph.signature not in self._proven
        coefficient: float | None = 1.0
        if self.max_grad_norm is not None or self.loss_scale.dynamic or self.inner.nonfinite != "ignore" or unproven:
            if closure is None and self.params.bundle_of:
                raise RuntimeError(
                    "under fully_shard the graph cannot run twice, as this setting needs (max_grad_norm, dynamic loss "
                    "scale, nonfinite, reentrant checkpoints); pass a closure: opt.backward(lambda: loss_of(batch))"
                )
            coefficient = self._measure(loss, graph, keep_graph=closure is None)
            self.skipped = coefficient is None
            if coefficient is None:
                self._stepped = False
                return loss.detach()
            if graph.segments:
                self._proven.add(graph.signature)
            if closure is not None:
                restore(random)
                loss = evaluate(closure)
                again = read_graph(self, loss)
                if again.segments and again.signature not in self._proven:
                    raise RuntimeError("the closure built a different graph the second time; it must be deterministic")
        backward_pass.run(self, Pass("update", self.scale, coefficient), loss, graph, keep_graph=False)
        self.loss_scale.updated()
        if self.params.bundle_of:
            data_parallel.reshard(self.inner.model())
        self._stepped = False
        return loss.detach()

    def _measure(self, loss: Tensor, graph: Graph, keep_graph: bool) -> float | None:
        """First pass: the gradient norm, and from it the clip coefficient. None when the step must be skipped (overflow)."""
        current = Pass("measure", self.scale)
        backward_pass.run(self, current, loss, graph, keep_graph)
        self.grad_norm, infinite = backward_pass.total_norm(self.inner, current)
        if infinite is not None:
            if self.loss_scale.dynamic:
                self.loss_scale.overflow(infinite)
                return None
            if self.inner.nonfinite == "raise":
                raise FloatingPointError(f"{infinite}: gradient holds inf or nan; nothing was updated")
            if self.inner.nonfinite == "skip":
                return None
        self.loss_scale.clean()
        if self.max_grad_norm is None:
            return 1.0
        coefficient = self.max_grad_norm / (self.grad_norm + 1e-6)
        return 1.0 if coefficient > 1.0 else coefficient  # nan stays nan, as in clip_grad_norm_

    @torch.no_grad()
    def _arrived(self, p: nn.Parameter) -> None:
        """The hook: a gradient is complete."""
        if self.current is not None:
            backward_pass.take(self, self.current, p)
        elif not self._paused:
            p.grad = None
            raise RuntimeError(f"{self.inner.name(p)}: {PLAIN_BACKWARD.format(type(self).__name__)}")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, loss.backward() fills .grad as usual, for probing gradients; leave no .grad behind."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def close(self) -> None:
        """Remove the hooks for good; the model trains plainly again."""
        self.params.unhook()
        if self._watch is not None:
            self._watch.remove()
        self._closed = True

    # -- as a torch optimizer ----------------------------------------------------------------------------------------------

    @uncompiled
    def step(self, closure: Callable | None = None):
        """Does nothing but check that backward ran; with a closure, runs backward(closure) first, as torch's step does."""
        if closure is None and self._stepped and is_rehearsal(self):
            self.inner.prepare()
            return None
        if closure is not None and not self._stepped:
            check_empty(closure())  # Lightning's manual optimization passes one that does nothing
            closure = None
        loss = self.backward(closure) if closure is not None else None
        if self._stepped:
            raise RuntimeError(
                "step() before backward: call opt.backward(loss), which updates the weights, then opt.step()"
            )
        self._stepped = True
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients are freed already; anything left by a paused backward is dropped."""
        super().zero_grad(set_to_none)

    def add_param_group(self, group: dict) -> None:
        """As in torch; the new parameters get hooks too."""
        if "params" not in self.__dict__:  # called by torch's constructor with the inner optimizer's own groups
            return
        self.inner.add_param_group(group)
        self._refresh()

    def save(self) -> dict:
        """The inner optimizer's, plus loss scale and clean steps."""
        return {**self.inner.state_dict(), "fused": self.loss_scale.saved()}

    def load(self, state_dict: dict) -> None:
        """Take over what save() returned."""
        scale = self.loss_scale.read(state_dict.get("fused", {}))
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != "fused"})
        self.params.read(self.param_groups, self.inner.model())
        self.loss_scale.value, self.loss_scale.clean_steps = scale

    def state_bytes(self) -> int:
        """Bytes of the state of this process, see RuleOptimizer.state_bytes."""
        return self.inner.state_bytes()

    def __getstate__(self) -> dict:
        left_out = {"params", "current", "_proven", "_watch", "step"}  # schedulers put a step bound to this one there
        return {k: v for k, v in self.__dict__.items() if k not in left_out and not k.endswith("_hooks")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        super().__setstate__({})
        self._start()
