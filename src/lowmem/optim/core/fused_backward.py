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
import math
import operator
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lowmem.blocks.layers import is_lazy
from lowmem.optim.core import data_parallel
from lowmem.optim.core.autograd_graph import Graph, evaluate, others, random_states, read_graph, restore
from lowmem.optim.core.checks import NO_SPARSE, is_rehearsal
from lowmem.optim.core.clipping import check_clipping, norm_of, prepared
from lowmem.optim.core.hooks import PLAIN_BACKWARD, Hook, check_empty, owner, wrapped_in
from lowmem.optim.core.rule_optimizer import RuleOptimizer
from lowmem.optim.core.sharded_update import local_gradient
from lowmem.optim.core.torch_optimizer import Optimizer
from lowmem.optim.core.transfers import refuse_capture

SCALE_START, SCALE_GROWTH, SCALE_WINDOW, SCALE_MIN = 2.0**16, 2.0, 1000, 1.0  # the paper's scripts


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
        self.dynamic = loss_scale == "dynamic"
        self.scale = SCALE_START if self.dynamic else float(loss_scale or 1.0)
        self.clean_steps = 0
        self.skipped = False  # whether the last backward overflowed and updated nothing
        self.grad_norm: float | None = None  # global gradient norm of the last first pass
        self._mode: str | None = None  # None, "paused", or inside backward "measure" or "update"
        self._stepped, self._closed = True, False
        self._coefficient = 1.0
        for p in (p for group in inner.param_groups for p in group["params"]):
            if (other := owner(p)) is not None:  # the newest takes over; the other says so when it is used
                other.close()
        super().__init__(inner.param_groups, inner.defaults)
        self._start()

    def _start(self) -> None:
        """What is not saved: hooks, and what is known of this process's graphs."""
        self._handles: dict[nn.Parameter, torch.utils.hooks.RemovableHandle] = {}
        self._fired: set[nn.Parameter] = set()
        self._norms: list[tuple[nn.Parameter, Tensor]] = []
        self._proven: set[tuple] = set()  # graphs with reentrant checkpoints in which every weight fired once
        self._trained: list[nn.Parameter] = []
        self._bundle_of: dict[nn.Parameter, int] = {}
        self._waiting: dict[int, list] = {}  # parts whose fully_shard group is not complete yet
        self._watch = data_parallel.watch_ddp(self.inner)
        self._share()
        self._arm()

    @property
    def state(self):
        """The inner optimizer's, also when it is assigned."""
        return self.inner.state

    @state.setter
    def state(self, value) -> None:
        if "_handles" in self.__dict__:  # torch's constructor makes an empty one
            self.inner.state = value

    @property
    def param_groups(self) -> list[dict]:
        """The inner optimizer's, also when they are assigned."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict]) -> None:
        if "_handles" in self.__dict__:
            self.inner.param_groups = value
            self._share()

    def _arm(self) -> None:
        """A hook on every parameter that trains; called again before each backward, since groups and freezing may change."""
        if self._closed:
            return
        for p in self._handles.keys() - self._group_of.keys():
            self._handles.pop(p).remove()
        for p in self._trained:
            if p not in self._handles:
                self._handles[p] = p.register_post_accumulate_grad_hook(Hook(self, "_hook"))

    def _share(self) -> None:
        """What is known of the inner optimizer's groups; they may be other ones by now, or other weights train."""
        self._group_of = {p: group for group in self.param_groups for p in group["params"]}
        trained = [p for p in self._group_of if p.requires_grad and not is_lazy(p)]
        if len(trained) == len(self._trained) and all(map(operator.is_, trained, self._trained)):
            return
        self._trained, self._bundle_of = trained, data_parallel.bundles(self.inner.model(), trained)
        numbers = list(self._bundle_of.values())
        self._bundle_size = {number: numbers.count(number) for number in set(numbers)}

    # -- backward --------------------------------------------------------------------------------------------------------

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
        if self._closed or self._mode is not None:
            closed = "after opt.close(), or after another optimizer took over its parameters; build a new one"
            where = closed if self._closed else "inside opt.paused(); leave it first"
            raise RuntimeError(f"opt.backward was called {where}")
        closure = loss if callable(loss) else None
        self._share()
        left = next((p for p in self._group_of if p.grad is not None), None)
        if left is not None:
            raise RuntimeError(f"{self.inner.name(left)}: holds a gradient from before; call opt.zero_grad() first")
        self.inner.look(self._trained)
        data_parallel.check_averaging(self.inner, self.process_group)
        self.inner.agree()
        self._arm()
        random = random_states(self._group_of) if closure is not None else None
        if closure is not None:
            loss = evaluate(closure)
            self._share()  # a lazy layer has its weights by now
            self._arm()
        graph = read_graph(self, loss)
        data_parallel.check_same_leaves(self, graph.leaves)
        self.skipped, self._coefficient = False, 1.0
        unproven = bool(graph.segments) and graph.signature not in self._proven
        if self.max_grad_norm is not None or self.dynamic or self.inner._nonfinite != "ignore" or unproven:
            if closure is None and self._bundle_of:
                raise RuntimeError(
                    "under fully_shard the graph cannot run twice, as this setting needs (max_grad_norm, dynamic loss "
                    "scale, nonfinite, reentrant checkpoints); pass a closure: opt.backward(lambda: loss_of(batch))"
                )
            self.skipped = not self._measure(loss, graph, keep_graph=closure is None)
            if self.skipped:
                self._stepped = False
                return loss.detach()
            if graph.segments:
                self._proven.add(graph.signature)
            if closure is not None:
                restore(random)
                loss = evaluate(closure)
                again = read_graph(self, loss)
                if again.segments and again.signature not in self._proven:
                    raise RuntimeError("the closure built another graph the second time; it must do the same each time")
        self._run("update", loss, graph, keep_graph=False)
        data_parallel.reshard(self)
        self._stepped = False
        return loss.detach()

    def _measure(self, loss: Tensor, graph: Graph, keep_graph: bool) -> bool:
        """First pass: gradient norm into the clip coefficient. False when the step must be skipped (overflow)."""
        self._norms = []
        self._run("measure", loss, graph, keep_graph)
        read = data_parallel.numbers(self._norms)
        self._norms = []
        norm = self.grad_norm = math.sqrt(data_parallel.total_square(self.inner, read)) / self.scale
        if not math.isfinite(norm):
            names = (self.inner.name(p) for p, x in read if not math.isfinite(x))
            name = next(names, "a part on another rank")
            if self.dynamic:
                if self.scale <= SCALE_MIN:
                    raise FloatingPointError(
                        f"{name}: gradient overflows at the smallest loss scale; nothing was updated"
                    )
                self.scale, self.clean_steps = max(self.scale / SCALE_GROWTH, SCALE_MIN), 0
                return False
            if self.inner._nonfinite == "raise":
                raise FloatingPointError(f"{name}: gradient holds inf or nan; nothing was updated")
            if self.inner._nonfinite == "skip":
                return False
        self.clean_steps += self.dynamic
        if self.max_grad_norm is not None:
            coefficient = self.max_grad_norm / (norm + 1e-6)
            self._coefficient = 1.0 if coefficient > 1.0 else coefficient  # nan stays nan, as in clip_grad_norm_
        return True

    def _run(self, mode: str, loss: Tensor, graph: Graph, keep_graph: bool) -> None:
        """One backward in which hooks measure or update; every parameter may fire once."""
        self._fired.clear()
        self._active_scale = scale = self.scale
        aside = []
        if mode == "measure" or scale != 1.0:  # gradients of others: none from measuring, and unscaled
            aside = [(p, p.grad) for p in others(self, graph) if p.requires_grad]
        for p, _ in aside:
            p.grad = None
        self._mode = mode
        self.inner.shared = {}
        try:
            (loss * scale if scale != 1.0 else loss).backward(retain_graph=keep_graph)
            self._flush(*self._waiting)
            data_parallel.check_fired(self)
        except RuntimeError as error:
            if keep_graph and "donated buffer" in str(error):
                raise RuntimeError(
                    "the graph of a compiled model cannot run twice; pass a closure: opt.backward(lambda: loss_of(batch))"
                ) from error
            raise
        finally:
            self._mode = self.inner.shared = None
            self._waiting.clear()
            self.inner.finish()
            for p in self._fired:
                p.grad = None
            for p, before in aside:
                fresh = p.grad.div_(scale) if mode == "update" and p.grad is not None else None
                p.grad = before if fresh is None else fresh if before is None else before.add_(fresh)
        if mode == "update" and self.dynamic and self.clean_steps % SCALE_WINDOW == 0:
            self.scale = scale * SCALE_GROWTH  # from the next step on

    @torch.no_grad()
    def _hook(self, p: nn.Parameter) -> None:
        """A gradient is complete: measure it or use it, then drop it."""
        name = self.inner.name(p)
        if self._mode is None:
            p.grad = None
            raise RuntimeError(f"{name}: {PLAIN_BACKWARD.format(type(self).__name__)}")
        if self._mode == "paused":
            return
        if p in self._fired:
            raise RuntimeError(
                f"{name}: its gradient arrived twice in one backward, because a reentrant checkpoint shares this weight; "
                "use torch.utils.checkpoint with use_reentrant=False"
                + ("" if self._mode == "measure" else "; weights of this step are already changed, reload a checkpoint")
            )
        self._fired.add(p)
        gradient, p.grad = p.grad, None
        if gradient.layout != torch.strided:
            raise RuntimeError(f"{name}: {NO_SPARSE}")
        if (shard := self.inner.shard(p)) is not None:
            gradient = local_gradient(name, p, gradient)
            if gradient.device.type == "cpu" and shard.device == "cuda":  # offloaded: the copy may still be on its way
                torch.cuda.current_stream().synchronize()
        elif self.process_group:
            gradient = data_parallel.average(gradient, self.process_group)
        if self._mode == "measure":
            self._norms.append((p, norm_of(gradient)))
            return
        gradient, factor = prepared(self, p, gradient)
        work = (self._group_of[p], p, gradient)
        if (number := self._bundle_of.get(p)) is None:
            self.inner.update([work], factor)
            return
        waiting = self._waiting.setdefault(number, [])  # fully_shard made all of a group's gradients at once
        waiting.append((work, factor))
        if len(waiting) == self._bundle_size[number]:
            self._flush(number)

    @torch.no_grad()
    def _flush(self, *numbers: int) -> None:
        """Update the parts that have arrived of some fully_shard groups, with one reduction per stage and group."""
        for number in numbers:
            if work := self._waiting.pop(number, None):
                self.inner.update([triple for triple, _ in work], work[0][1])

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, loss.backward() fills .grad as usual, for probing gradients; leave no .grad behind."""
        before, self._mode = self._mode, "paused"
        try:
            yield
        finally:
            self._mode = before

    def close(self) -> None:
        """Remove the hooks for good; the model trains plainly again."""
        for handle in self._handles.values():
            handle.remove()
        if self._watch is not None:
            self._watch.remove()
        self._handles, self._closed = {}, True

    # -- as a torch optimizer ----------------------------------------------------------------------------------------------

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
        """Gradients are gone already; anything left by a paused backward is dropped."""
        super().zero_grad(set_to_none)

    def add_param_group(self, group: dict) -> None:
        """As in torch; the new parameters get hooks too."""
        if "_handles" not in self.__dict__:  # called by torch's constructor with the inner optimizer's own groups
            return
        self.inner.add_param_group(group)
        self._share()
        self._arm()

    def save(self) -> dict:
        """The inner optimizer's, plus loss scale and clean steps."""
        return {**self.inner.state_dict(), "fused": {"scale": self.scale, "clean_steps": self.clean_steps}}

    def load(self, state_dict: dict) -> None:
        fused = state_dict.get("fused", {})
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != "fused"})
        self._share()
        self.scale, self.clean_steps = fused.get("scale", self.scale), fused.get("clean_steps", self.clean_steps)

    def state_bytes(self) -> int:
        return self.inner.state_bytes()

    def __getstate__(self) -> dict:
        # fmt: off
        left_out = {
            "_handles", "_group_of", "_fired", "_norms", "_proven", "_waiting", "_watch", "_bundle_of", "_trained",
        }
        # fmt: on
        return {k: v for k, v in self.__dict__.items() if k not in left_out and not k.endswith("_hooks")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        super().__setstate__({})
        self._start()
