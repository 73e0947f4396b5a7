"""Which rows of a fused projection feed which head, found by running the attention once on a few random numbers.

Names say nothing about the order of rows: `qkv` holds all queries, then all keys, then all values in most code bases, and
query, key and value of head after head in others. The module's own forward knows. Its fused layer is made to give random
numbers, the input of its output layer is caught, and gradients tell the rest: all query and key rows of a head feed each
of its channels, a value row feeds one channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowmem.attention_heads import head_counts
from lowmem.layers import CONVOLUTIONS, is_projection

DESCRIBED = ("torch", "transformers", "diffusers", "lowmem", "peft")  # packages whose layouts attention.py knows
POSITIONS = 4

Part = tuple[str, int, int]


class _Caught(Exception):
    """Carries the input of the output layer out of the forward."""


def fused_parts(module: nn.Module, layer: nn.Module) -> tuple[Part, ...] | None:
    """Parts of a fused projection in the order of its rows, as in Role; None where running the module does not tell."""
    heads, _ = head_counts(module)
    own = [*module.parameters(), *module.buffers()]
    plain = all(type(x) in (Tensor, nn.Parameter) and x.device.type not in ("meta",) for x in own)
    if heads is None or not plain or type(module).__module__.split(".")[0] in DESCRIBED:
        return None
    training = [(m, m.training) for m in module.modules()]
    devices = {x.device for x in own if x.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(0)
            module.eval()
            caught = _run(module, layer)
            return None if caught is None else _read(*caught, heads)
    except Exception:  # whatever a stranger's forward may raise on these inputs
        return None
    finally:
        for m, mode in training:
            m.training = mode


def _run(module: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """(output of the fused layer, input of the output layer), channels last, from the first form of input that works."""
    weight = layer.weight
    width = layer.in_channels if isinstance(layer, CONVOLUTIONS) else layer.in_features
    forms = [(1, POSITIONS, width), (1, 2, 2, width), (1, width, 2, 2)]
    for form in forms[2:] if isinstance(layer, CONVOLUTIONS) else forms:
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
            with torch.enable_grad():
                module(torch.randn(form, dtype=weight.dtype, device=weight.device))
        except _Caught as caught:
            last = -1 if not isinstance(layer, CONVOLUTIONS) else 1
            rows, out = seen[0], caught.args[0]
            return (rows, out) if last == -1 else (rows, out.movedim(1, -1) if out.ndim == 4 else out)
        except Exception:  # this form of input is none of its
            continue
        finally:
            for handle in handles:
                handle.remove()
    return None


def _read(rows: Tensor, out: Tensor, heads: int) -> tuple[Part, ...] | None:
    """Parts from gradients; rows (..., R) or (1, R, H, W), out (..., heads * size)."""
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
    return _parts(score, value)


def _parts(score: Tensor, value: Tensor) -> tuple[Part, ...] | None:
    """Runs of rows of one kind and one head; score and value (heads, rows): what feeds which."""
    shared = bool((score.sum(0) > 1).any())  # keys that several query heads share
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
            return None
        for _ in range(length * 2 // total):  # query and key of one head lie side by side
            before = seen.get(heads, 0)
            parts.append(("key" if before else "query", total // 2, total // 2))
            seen[heads] = before + 1
    return tuple(parts)
