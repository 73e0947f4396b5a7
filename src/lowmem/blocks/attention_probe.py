"""Which rows of a fused projection feed which head, found by running the attention once on a few random numbers.

Names say nothing about the order of rows: `qkv` holds all queries, then all keys, then all values in most code bases, and
query, key and value of head after head in others. The module's own forward knows. Its fused layer is made to give random
numbers, the input of its output layer is caught, and gradients tell the rest: all query and key rows of a head feed each
of its channels, a value row feeds one channel.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lowmem.blocks.heads import head_counts
from lowmem.blocks.layers import CONVOLUTIONS, is_projection
from lowmem.blocks.trial import on_trial

DESCRIBED = ("torch", "transformers", "diffusers", "lowmem", "peft")  # packages whose layouts attention.py knows
POSITIONS = 4
MOST_POSITIONS, MOST_NUMBERS = 256, 1 << 28

Part = tuple[str, int, int]


class _Caught(Exception):
    """Carries the input of the output layer out of the forward."""


def fused_parts(module: nn.Module, layer: nn.Module) -> tuple[Part, ...] | None:
    """Parts of a fused projection in the order of its rows, as in Role.

    None where running the module does not tell, () where it tells that rows of one head do not lie together.
    """
    heads, _ = head_counts(module)
    fed = None if heads is None else _fed(module, layer, heads)
    return None if fed is None else _parts(*fed)


def key_value_parts(module: nn.Module, layer: nn.Module, heads: int, size: int) -> tuple[Part, ...] | None:
    """The same of a projection of keys and values beside separate queries. heads: of the queries; size: rows of a head."""
    fed = _fed(module, layer, heads)
    if fed is None:
        return None
    kinds = [(bool(v.any()), tuple((v if v.any() else s).tolist())) for s, v in zip(fed[0].T, fed[1].T)]
    runs = [(value, len(list(same))) for (value, _), same in itertools.groupby(kinds)]
    if any(length != size for _, length in runs):
        return ()
    return tuple(("value" if value else "key", size, size) for value, _ in runs)


def _fed(module: nn.Module, layer: nn.Module, heads: int) -> tuple[Tensor, Tensor] | None:
    """(queries and keys, values), each (heads, rows): what feeds which head; None where a trial does not tell."""
    own = [*module.parameters(), *module.buffers()]
    plain = all(type(x) in (Tensor, nn.Parameter) for x in own)
    if not plain or is_described(module):
        return None
    if any(x.is_meta for x in own):
        return _on_cpu(module, layer, own, heads)
    try:
        with on_trial(module), torch.inference_mode(False), torch.enable_grad():
            caught = _run(module, layer)
            return None if caught is None else _read(*caught, heads)
    except Exception:  # a third-party forward may raise anything on these inputs
        return None


def first_head(module: nn.Module, layer: nn.Module, size: int) -> bool | None:
    """Whether the first `size` rows of separate queries or keys, and no others, feed the first channel of the output layer.

    None where running the module does not tell: other rows, not as many.
    """
    own = [*module.parameters(), *module.buffers()]
    if is_described(module) or not all(type(x) in (Tensor, nn.Parameter) and not x.is_meta for x in own):
        return None
    try:
        with on_trial(module), torch.inference_mode(False), torch.enable_grad():
            caught = _run(module, layer)
            if caught is None or isinstance(layer, CONVOLUTIONS):
                return None
            rows, out = caught
            (g,) = torch.autograd.grad(out[..., 0].sum(), rows)
            fed = (g.flatten(0, -2).abs().amax(0) > 0).nonzero().flatten().tolist()
    except Exception:  # a third-party forward may raise anything on these inputs
        return None
    return fed == list(range(size)) if len(fed) == size else None


def is_described(module: nn.Module) -> bool:
    """Whether it comes from a package whose layouts are known without trying."""
    return type(module).__module__.split(".")[0] in DESCRIBED


def _on_cpu(module: nn.Module, layer: nn.Module, own: list[Tensor], heads: int) -> tuple[Tensor, Tensor] | None:
    """_fed of a copy with random weights, for a module without any; None where it cannot be copied or is too large."""
    if sum(x.numel() for x in own) > MOST_NUMBERS:
        return None
    name = next(name for name, child in module.named_modules() if child is layer)
    try:
        filled = copy.deepcopy(module).to_empty(device="cpu")
    except Exception:  # a third-party module may hold what cannot be copied: a process group, a lock
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for p in filled.parameters():
            p.normal_(0, 0.1)
        for buffer in filled.buffers():
            buffer.zero_()
    return _fed(filled, filled.get_submodule(name), heads)


def _run(module: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """(output of the fused layer, input of the output layer), channels last, from the first form of input that works."""
    for inputs in _inputs(module, layer):
        seen: list[Tensor] = []

        def replace(_layer, _inputs, output, seen=seen):
            seen.append(torch.randn_like(output, dtype=torch.float32).requires_grad_())
            return seen[-1].to(output.dtype)

        def catch(_layer, inputs, seen=seen):
            if seen and inputs[0].requires_grad:
                raise _Caught(inputs[0])

        others = [m for m in module.modules() if is_projection(m) and m is not layer]
        handles = [layer.register_forward_hook(replace), *(m.register_forward_pre_hook(catch) for m in others)]
        try:
            module(*inputs)
        except _Caught as caught:
            last = -1 if not isinstance(layer, CONVOLUTIONS) else 1
            rows, out = seen[0], caught.args[0]
            return (rows, out) if last == -1 else (rows, out.movedim(1, -1) if out.ndim == 4 else out)
        except Exception:  # it does not take this form of input
            continue
        finally:
            for handle in handles:
                handle.remove()
    return None


def _inputs(module: nn.Module, layer: nn.Module) -> Iterator[tuple]:
    """Arguments to try the module with: features of a few positions, and for what else it asks nothing, features, or sizes."""
    weight = layer.weight
    convolution = isinstance(layer, CONVOLUTIONS)
    width = layer.in_channels if convolution else layer.in_features
    forms = [(1, width, 2, 2)] if convolution else [(1, POSITIONS, width), (1, 2, 2, width), (1, width, 2, 2)]
    forms += [] if convolution else [(1, count, width) for count in _windows(module)]
    asked = [p for p in inspect.signature(module.forward).parameters.values() if p.default is p.empty]
    more = max(sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in asked) - 1, 0)
    for form in forms:
        features = torch.randn(form, dtype=weight.dtype, device=weight.device)
        yield features, *[None] * more
        if more:
            yield features, *[torch.randn_like(features) for _ in range(more)]
            yield features, *[2] * more  # height and width of four positions
            yield features, *[torch.ones(form[1], form[1], dtype=torch.bool, device=weight.device)] * more


def _windows(module: nn.Module) -> list[int]:
    """Numbers of positions that tables of the module are made for: (n, n) of pairs, ((2w - 1)^2, heads) of offsets."""
    counts = []
    for table in (*module.buffers(), *module.parameters(recurse=False)):
        if table.ndim == 2 and table.shape[0] == table.shape[1]:
            counts.append(table.shape[0])
        elif table.ndim == 2 and (side := math.isqrt(table.shape[0])) ** 2 == table.shape[0] and side % 2:
            counts.append(((side + 1) // 2) ** 2)
    return sorted({count for count in counts if 1 < count <= MOST_POSITIONS})


def _read(rows: Tensor, out: Tensor, heads: int) -> tuple[Tensor, Tensor] | None:
    """What feeds which head, from gradients; rows (..., R) or (1, R, H, W), out (..., heads * size)."""
    size = out.shape[-1] // heads
    if out.shape[-1] % heads or size < 2:
        return None
    axis = 1 if rows.ndim == 4 and rows.shape[-1] != out.shape[-1] and rows.shape[1] > rows.shape[-1] else -1

    def feeds(channels: slice) -> Tensor:
        part = out[..., channels]
        (g,) = torch.autograd.grad((part * torch.randn_like(part)).sum(), rows, retain_graph=True)
        return g.movedim(axis, -1).flatten(0, -2).abs().amax(0) > 0

    scores, values = [], []  # per head: rows of its queries and keys; rows of its values
    for head in range(heads):
        first = head * size
        of_all, both = (
            feeds(slice(first, first + size)),
            feeds(slice(first, first + 1)) & feeds(slice(first + 1, first + 2)),
        )
        scores.append(both)
        values.append(of_all & ~both)
    score, value = torch.stack(scores), torch.stack(values)
    if not ((score.any(0) ^ value.any(0)).all() and score.any() and value.any()):
        return None
    return score, value


def _parts(score: Tensor, value: Tensor) -> tuple[Part, ...] | None:
    """Runs of rows of one kind and one head; score and value (heads, rows): what feeds which. () and None as in fused_parts."""
    shared = bool((score.sum(0) > 1).any())  # keys that several query heads share
    if shared and not score[:, score.sum(0) == 1].any(1).all():
        return None  # heads that are mixed with each other: no row is a query of one head alone
    runs: list[list] = []
    for row in range(score.shape[1]):
        kind = "value" if value[:, row].any() else "key" if shared and score[:, row].sum() > 1 else "query"
        label = (kind, tuple((value if kind == "value" else score)[:, row].nonzero().flatten().tolist()))
        if runs and runs[-1][0] == label:
            runs[-1][1] += 1
        else:
            runs.append([label, 1])
    if shared:
        return tuple((kind, length, length) for (kind, _), length in runs)
    total = int(score[0].sum())  # rows of one head's query and key; equally many of each
    parts: list[Part] = []
    seen: dict = {}
    for (kind, heads), length in runs:
        if kind == "value":
            parts.append((kind, length, length))
            continue
        if total % 2 or length not in (total, total // 2):
            return ()
        for _ in range(length * 2 // total):  # query and key of one head lie side by side
            before = seen.get(heads, 0)
            parts.append(("key" if before else "query", total // 2, total // 2))
            seen[heads] = before + 1
    return tuple(parts)
