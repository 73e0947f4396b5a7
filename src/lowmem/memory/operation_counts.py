"""What a step makes a GPU do, counted while the accountant traces it: arithmetic, memory traffic, bytes between GPUs.

Operations are counted by PyTorch's own formulas (torch.utils.flop_counter), those of grouped products, which it lacks, here;
everything else costs the bytes it reads and writes. What that takes on a certain GPU is throughput.py's business.
"""

from __future__ import annotations

import functools
from collections import Counter

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

FREE = (  # allocate or rename, and run no kernel
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
    "set_",
    "resize_",
    "_local_scalar_dense",
)
MATMULS = ("matmul", "fp32 matmul")
COLLECTIVES = {  # operation: (bytes that cross a rank's link per byte of the larger side, times (n - 1) / n)
    "_allgather_base_": 1,
    "allgather_": 1,
    "all_gather_into_tensor": 1,
    "all_gather_into_tensor_out": 1,
    "_reduce_scatter_base_": 1,
    "reduce_scatter_tensor": 1,
    "allreduce_": 2,
    "all_reduce": 2,
    "all_reduce_": 2,
}


class OperationCounts(Counter):
    """How often what is done in a stage of the step ("forward", "backward", "update").

    Keys: (stage, "matmul", operations, bytes), (stage, "stream", bytes) and (stage, "link", bytes, axis), axis being
    "data", "tensor" or "expert"; "fp32 matmul" where a product is in fp32 whatever the precision says. Values are counts,
    not whole numbers once two depths have been extrapolated.
    """

    def note(self, stage: str, operation, args: tuple, kwargs: dict, result) -> None:
        """Count one operation of the dispatcher."""
        if operation.namespace in ("c10d", "_c10d_functional"):
            self.collective(stage, operation, args, result)
        elif _runs(operation):
            written = args[0] if result is None and args else result  # what works on lists in place returns nothing
            tensors = [x for x in tree_leaves((args, kwargs, written)) if isinstance(x, Tensor)]
            size = sum(map(_bytes, tensors))
            formula = flop_registry.get(operation.overloadpacket)
            if operation._opname == "_grouped_mm":
                kind = "fp32 matmul" if args[0].dtype == torch.float32 else "matmul"
                self[stage, kind, grouped_operations(*args[:2]), size] += 1
            elif formula is not None:
                self[stage, "matmul", formula(*args, **kwargs, out_val=result), size] += 1
            else:
                self[stage, "stream", size] += 1

    def collective(self, stage: str, operation, args: tuple, result) -> None:
        """Count the bytes of a collective; on the data axis unless DTensor (functional collectives) made it."""
        factor = COLLECTIVES.get(operation._opname)
        if factor is None:
            return
        sides = [sum(_bytes(x) for x in tree_leaves(side) if isinstance(x, Tensor)) for side in (*args[:2], result)]
        axis = "tensor" if operation.namespace == "_c10d_functional" else "data"
        self[stage, "link", factor * max(sides), axis] += 1

    def attention(self, stage: str, q: Tensor, k: Tensor, products: float, document: int | None = None) -> None:
        """Count a causal attention kernel of so many matrix products; forward has 2, FlashAttention's backward 5.
        document: tokens of each of the documents packed into a sequence."""
        batch, heads, length, size = q.shape
        seen = min(k.shape[2], document or k.shape[2])
        operations = products * 2 * batch * heads * length * seen * size / 2  # half of the pairs are masked
        self[stage, "matmul", operations, 4 * _bytes(q)] += 1

    def touched(self, stage: str, x: Tensor, times: int) -> None:
        """Count a kernel that reads or writes so many tensors like x."""
        self[stage, "stream", times * _bytes(x)] += 1

    def repeat(self, stages: tuple[str, ...], times: float) -> None:
        """Count what these stages did so many times."""
        for key in self:
            if key[0] in stages:
                self[key] *= times

    def operations(self, stage: str | None = None) -> float:
        """Floating point operations of matrix products, of one stage or of all."""
        return sum(n * key[2] for key, n in self.items() if key[1] in MATMULS and stage in (None, key[0]))


def extrapolated(few: OperationCounts, more: OperationCounts, share: float) -> OperationCounts:
    """few + share * (more - few), key by key: the work of a deeper model."""
    return OperationCounts({key: few[key] + share * (more[key] - few[key]) for key in {**few, **more}})


def grouped_operations(a: Tensor, b: Tensor) -> int:
    """Operations of a grouped product: of two matrices of which one is cut into groups, or both, or none."""
    groups = a.shape[0] if a.ndim == 3 and b.ndim == 2 else 1
    return 2 * a.numel() * b.shape[-1] // groups


@functools.cache
def _runs(operation) -> bool:
    """Whether an operation starts a kernel."""
    return operation.namespace == "aten" and not operation.is_view and operation._opname not in FREE


def _bytes(x: Tensor) -> int:
    """Bytes behind a tensor; an expanded one is read once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
