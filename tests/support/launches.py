"""Kernel launches, bytes, waits and uploads of an optimizer step on a GPU, counted on meta tensors in its place.

A launch is one operation of PyTorch's dispatcher that computes; what works on lists is cut into launches as
multi_tensor_apply cuts it (aten/src/ATen/native/cuda/MultiTensorApply.cuh: so many tensors and at most 320 chunks of
65,536 elements each). Bytes are those of every tensor read and of every tensor written; an operation in place reads and
writes its first argument. Reading a number back from the device, or copying to the host, is a wait.
"""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowmem.blocks import Partition, partition
from lowmem.optim.core.backward_pass import Pass

NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "lift_fresh", "detach", "resize_")
ONLY_WRITTEN = (
    "copy_",
    "_foreach_copy_",
    "fill_",
    "zero_",
    "full",
    "zeros",
    "ones_like",
    "zeros_like",
    "randint_like",
    "rand_like",
)
TENSORS_AT_ONCE = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}  # by the number of lists
CHUNKS, CHUNK = 320, 65536


def size(x: Tensor) -> int:
    """Bytes of a tensor, an expanded one once."""
    return x.element_size() * torch.Size(n for n, stride in zip(x.shape, x.stride()) if stride != 0 or n == 0).numel()


def launches_of_lists(lists: list[list[Tensor]]) -> int:
    """How often multi_tensor_apply starts a kernel over parallel lists."""
    at_once, launches, tensors, chunks = TENSORS_AT_ONCE[len(lists)], 0, 0, 0
    for x in lists[0]:
        parts = -(-x.numel() // CHUNK)
        tensors += bool(parts)
        for part in range(parts):
            chunks += 1
            last = part == parts - 1
            if chunks == CHUNKS or (last and tensors == at_once):
                launches, chunks, tensors = launches + 1, 0, 0 if last else 1
    return launches + bool(chunks)


class Launches(TorchDispatchMode):
    """count, bytes, waits and uploads so far; by_name: launches of each operation."""

    def __init__(self):
        super().__init__()
        self.restart()

    def restart(self) -> None:
        """Forget what was counted."""
        self.count = self.bytes = self.waits = self.uploads = 0
        self.by_name: dict[str, int] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operation._schema.name.split("::")[1]
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name == "_local_scalar_dense" and given[0].is_meta:
            self.waits += 1
            return 1.0
        if name == "_fused_adamw_" and given[0].is_meta:
            made = None  # has no meta kernel, and returns nothing
        else:
            made = operation(*args, **kwargs)
        results = [x for x in tree_leaves(made) if isinstance(x, Tensor)]
        if name in ("copy_", "_to_copy") and len({x.is_meta for x in given + results}) == 2:
            to_device = given[0].is_meta if name == "copy_" else results[0].is_meta
            self.uploads += to_device
            self.waits += not to_device
        elif any(x.is_meta for x in given + results) and not operation.is_view and name not in NOTHING:
            self.note(operation, name, args, given, results)
        return made

    def note(self, operation, name: str, args: tuple, given: list[Tensor], results: list[Tensor]) -> None:
        """Count one operation that computes."""
        lists = [x for x in args if isinstance(x, list | tuple) and x and isinstance(x[0], Tensor)]
        if name == "_fused_adamw_":
            p, g, m, v = lists[:4]
            written, given, launches = [*p, *m, *v], [*p, *g, *m, *v], launches_of_lists([p, g, m, v])
        elif name.startswith("_foreach"):
            written = results or lists[0]
            launches = launches_of_lists(lists if not results else [*lists, results])
        else:
            changed = [x for x, a in zip(args, operation._schema.arguments) if a.alias_info and a.alias_info.is_write]
            written, launches = results or changed, 1
        if name == "_foreach_copy_":
            given = [None, *lists[1]]
        first = () if name in ONLY_WRITTEN and given else given[:1]
        read = {id(x): x for x in (*first, *given[1:])}.values()
        read = [x for x in read if "out" not in operation._overloadname or all(x is not y for y in results)]
        self.count += launches
        self.by_name[name] = self.by_name.get(name, 0) + launches
        self.bytes += sum(map(size, read)) + sum(map(size, written))


def on_meta(model: nn.Module, dtype: torch.dtype) -> Partition:
    """The blocks of a model over parameters of this dtype that have no values."""
    blocks = partition(model)
    entries = {
        name: (blocks[name], nn.Parameter(torch.empty(p.shape, dtype=dtype, device="meta")))
        for name, p in model.named_parameters()
    }
    return Partition(entries, {}, None)


def step(optimizer, parameters: list[nn.Parameter], counter: Launches) -> None:
    """Two steps on gradients of no values, of which the second is counted; of FusedBackward, its hooks."""
    with counter, torch.no_grad():
        for _ in range(2):
            gradients = [torch.empty_like(p) for p in parameters]
            counter.restart()
            if hasattr(optimizer, "backward"):
                inside_backward(optimizer, parameters, gradients)
            else:
                for p, g in zip(parameters, gradients):
                    p.grad = g
                optimizer.step()


def inside_backward(optimizer, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
    """What backward_pass.run does around autograd: every hook measures, if there is a norm to clip, then updates."""
    passes = [Pass("measure", optimizer.scale), Pass("update", optimizer.scale, 0.5)]
    for current in passes if optimizer.max_grad_norm else [Pass("update", optimizer.scale)]:
        optimizer.current, optimizer.inner.shared = current, {}
        for p, g in zip(parameters, gradients):
            p.grad = g
            optimizer._arrived(p)
    optimizer.current = optimizer.inner.shared = None
