"""Hessians of small models, exact or by sampled columns, and how much of one lies inside the blocks of a partition.

Adam-mini (arXiv 2406.16793) rests on pictures of Hessians that look block-diagonal by neuron, head and token. Here the
picture comes with a number: the share of |H| inside the blocks, and the same share for partitions of the same block
sizes whose members are drawn at random (the null). Everything is computed in the model's own precision: use float64.
"""

import contextlib
import os
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowmem.blocks import ParamBlocks
from lowmem.errors import Misuse

DRAWS = 200  # random partitions of the null


@contextlib.contextmanager
def twice_differentiable():
    """Attention by plain operations: PyTorch's fused kernels have no second derivative. Enter it around the forward."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def products(gradients: Iterable[Tensor], parameters: list[Tensor], vectors: list[Tensor]) -> list[Tensor]:
    """Hessian-vector products for k vectors at once.

    gradients: of a scalar loss, made with create_graph=True, one for each entry of `vectors`. vectors: (k, *shape) for
    each gradient. Returns (k, *shape) for each of `parameters`: the rows of the Hessian mixed by the vectors; zeros
    where the loss does not depend on a parameter.
    """
    found = torch.autograd.grad(
        list(gradients), parameters, vectors, is_grads_batched=True, retain_graph=True, allow_unused=True
    )
    k = len(vectors[0])
    return [p.new_zeros(k, *p.shape) if h is None else h for h, p in zip(found, parameters, strict=True)]


def exact(loss: Callable[[], Tensor], parameter: Tensor, rows: int = 32, limit: int | None = None) -> np.ndarray:
    """The Hessian of loss() with respect to one parameter of n elements, (n, n), computed `rows` rows at a time.

    limit: bytes that the matrix may take; None takes what the machine has to spare. Raises Misuse, before anything is
    computed, when it does not fit.
    """
    n = parameter.numel()
    refuse_too_large(n, parameter.element_size(), limit)
    with twice_differentiable():
        (gradient,) = torch.autograd.grad(loss(), parameter, create_graph=True)
        hessian = torch.empty(n, n, dtype=parameter.dtype)
        for start in range(0, n, rows):
            count = min(rows, n - start)
            unit = torch.zeros(count, n, dtype=parameter.dtype, device=parameter.device)
            unit[torch.arange(count), torch.arange(start, start + count)] = 1
            (found,) = products([gradient], [parameter], [unit.view(count, *parameter.shape)])
            hessian[start : start + count] = found.reshape(count, n)
    return hessian.numpy()


def columns(
    loss: Callable[[], Tensor], parameter: Tensor, others: list[Tensor], indices: np.ndarray, rows: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the Hessian without the rest of it: (k, n) of one parameter, and each one's |mass| over `others`.

    indices: (k,) elements of the flattened parameter. others: all parameters of the model, `parameter` among them.
    The second result is (k,): the sum of |H| from each index to every element of every parameter.
    """
    own = next(i for i, p in enumerate(others) if p is parameter)
    parts, masses = [], []
    with twice_differentiable():
        (gradient,) = torch.autograd.grad(loss(), parameter, create_graph=True)
        for start in range(0, len(indices), rows):
            chosen = torch.as_tensor(indices[start : start + rows])
            unit = torch.zeros(len(chosen), parameter.numel(), dtype=parameter.dtype, device=parameter.device)
            unit[torch.arange(len(chosen)), chosen] = 1
            found = products([gradient], others, [unit.view(len(chosen), *parameter.shape)])
            parts.append(found[own].flatten(1).numpy())
            masses.append(sum(h.flatten(1).abs().sum(1) for h in found).numpy())
    return np.concatenate(parts), np.concatenate(masses)


def refuse_too_large(n: int, element_size: int, limit: int | None) -> None:
    """Misuse with the size that an n x n matrix would need, if it is more than the limit or the machine's memory."""
    needed, spare = n * n * element_size, available_memory()
    allowed = spare if limit is None else min(limit, spare)
    if needed > allowed:
        raise Misuse(
            f"the Hessian of {n:,} parameters needs {needed / 1e9:,.2f} GB and {allowed / 1e9:,.2f} GB are allowed; "
            "choose a smaller parameter or smaller inputs, raise measure.memory_mb, or sample columns of it"
        )


def available_memory() -> int:
    """Bytes that a process may still take: MemAvailable where Linux says it, else all physical memory."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/meminfo", encoding="ascii") as file:
            found = dict(line.split(":", 1) for line in file)
        return int(found["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2**63


def labels(blocks: ParamBlocks) -> np.ndarray:
    """The block of each element of a flattened parameter, (n,) whole numbers from 0."""
    if not blocks.segments:
        return np.arange(blocks.numel)
    if blocks.stack:
        entry = blocks.entry
        return np.concatenate([labels(entry) + entry.count * i for i in range(blocks.shape[0])])
    shape = (int(np.prod(blocks.shape[: blocks.merge])), *blocks.shape[blocks.merge :])
    of_slice, first = np.empty(shape[blocks.axis], dtype=np.int64), 0
    for start, stop, size in blocks.segments:
        of_slice[start:stop] = first + np.arange(stop - start) // size
        first += (stop - start) // size
    place = [1] * len(shape)
    place[blocks.axis] = -1
    return np.broadcast_to(of_slice.reshape(place), shape).ravel()


def mass_inside(magnitude: np.ndarray, groups: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Share of the mass that lies inside the blocks, for several partitions at once.

    magnitude: |H|, (n, n), or (m, n) with rows (m,) saying which rows these are. groups: (partitions, n) labels.
    Returns (partitions,); nan where there is no mass.
    """
    groups = np.atleast_2d(groups)
    of_rows = groups if rows is None else groups[:, rows]  # (partitions, m)
    total = magnitude.sum()
    if total <= 0:
        return np.full(len(groups), np.nan)
    count, inside = int(groups.max()) + 1, np.empty(len(groups))
    if count * 4 > len(magnitude):  # many small blocks: look at each pair
        for k, (own, all) in enumerate(zip(of_rows, groups, strict=True)):
            inside[k] = np.einsum("ij,ij->", magnitude, own[:, None] == all[None, :])
        return inside / total
    together = max(1, 256 // count)  # few large blocks: sum rows by block, several partitions in one matrix product
    for k in range(0, len(groups), together):
        member = groups[k : k + together, :, None] == np.arange(count)  # (together, n, count)
        sums = np.tensordot(magnitude, member.astype(magnitude.dtype), axes=(1, 1))  # (m, together, count)
        own = of_rows[k : k + together].T[:, :, None]  # (m, together, 1)
        inside[k : k + together] = np.take_along_axis(sums, own, axis=2).sum(axis=(0, 2))
    return inside / total


def random_partitions(groups: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(draws, n): the labels in random order, so that block sizes stay and membership means nothing."""
    return np.random.default_rng(seed).permuted(np.tile(groups, (draws, 1)), axis=1)


def block_share(
    magnitude: np.ndarray, groups: np.ndarray, seed: int, rows: np.ndarray | None = None, draws: int = DRAWS
) -> dict[str, float]:
    """Share of |H| inside the blocks with its null, and the contrast: mean |H| inside over mean |H| outside.

    Returns {share, null, null_low, null_high (median and 95 % interval of random partitions), contrast}.
    """
    share = float(mass_inside(magnitude, groups, rows)[0])
    null = mass_inside(magnitude, random_partitions(groups, draws, seed), rows)
    low, middle, high = (float(value) for value in np.quantile(null, [0.025, 0.5, 0.975]))
    own = groups if rows is None else groups[rows]
    entries = float(np.bincount(groups)[own].sum()) / magnitude.size  # share of the entries inside
    outside = (1 - share) / (1 - entries) if entries < 1 else 0.0
    contrast = share / entries / outside if outside else float("inf")
    return {"share": share, "null": middle, "null_low": low, "null_high": high, "contrast": contrast}


def picture(magnitude: np.ndarray, groups: np.ndarray, pixels: int = 128) -> np.ndarray:
    """|H| ordered by block and averaged over tiles for a picture of at most `pixels` x `pixels`, float32.

    The number of tiles is a multiple of the number of blocks where that fits, so that no tile crosses a block's edge
    when blocks are equally large.
    """
    order, count = np.argsort(groups, kind="stable"), int(groups.max()) + 1
    side = min(len(groups), pixels)
    if count <= side:
        side -= side % count
    edges = np.linspace(0, len(groups), side + 1).round().astype(int)[:-1]
    sizes = np.diff(np.append(edges, len(groups)))
    tiles = np.split(order, edges[1:])  # one after the other: a sorted copy would take the matrix's memory again
    summed = np.stack([magnitude[tile].sum(axis=0) for tile in tiles])[:, order]
    return (np.add.reduceat(summed, edges, axis=1) / np.outer(sizes, sizes)).astype(np.float32)
