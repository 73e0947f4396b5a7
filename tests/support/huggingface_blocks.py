"""Small Hugging Face models, and what each row of their matrices changes in the output."""

import math

import torch
from torch import nn

TOKENS, WIDTH, HEADS, HIDDEN, LENGTH = 20, 16, 4, 24, 6


COMMON = dict(
    vocab_size=TOKENS, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS, intermediate_size=HIDDEN,
    max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


GQA = {**COMMON, "num_key_value_heads": 2, "head_dim": 4}


WIDE = {**GQA, "head_dim": 8}  # heads x head_dim is not the width


OUTPUTS = ("o_proj", "c_proj", "out_proj", "dense", "out_lin", "Wo", "o")  # names of the projection after attention


def labels(blocks) -> torch.Tensor:
    """Which block each element belongs to, shaped like the parameter."""
    if blocks.kind == "coordinate":
        return torch.arange(blocks.numel).view(blocks.shape)
    if blocks.stack:
        entry = labels(blocks.entry)
        return torch.stack([entry + i * blocks.entry.count for i in range(blocks.shape[0])])
    merged = (math.prod(blocks.shape[: blocks.merge]), *blocks.shape[blocks.merge :])
    line, first = torch.empty(merged[blocks.axis], dtype=torch.long), 0
    for start, stop, size in blocks.segments:
        for i in range(start, stop):
            line[i] = first + (i - start) // size
        first += (stop - start) // size
    shape = [1] * len(merged)
    shape[blocks.axis] = -1
    return line.view(shape).expand(merged).reshape(blocks.shape)


def columns_changed(read, before: torch.Tensor, p: nn.Parameter, chosen: torch.Tensor) -> frozenset[int]:
    """Which columns of read() (positions, columns) differ from before when the chosen elements of p change."""
    saved = p.detach().clone()
    with torch.no_grad():
        p[chosen] += 0.7 * torch.randn(int(chosen.sum()))
    after = read()
    with torch.no_grad():
        p.copy_(saved)
    return frozenset(((after - before).abs().amax(0) > 1e-6).nonzero().flatten().tolist())


def reader(model: nn.Module, inputs: dict, output: nn.Module):
    """read(): what enters the output projection of one attention module, that is, all heads side by side."""

    def read() -> torch.Tensor:
        seen = []
        handle = output.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().flatten(0, -2)))
        with torch.no_grad():
            model(**inputs)
        handle.remove()
        return seen[0].clone()

    return read


def output_of(model: nn.Module, module: nn.Module) -> nn.Module:
    """The layer that reads the heads side by side: in the attention module, or in its sibling `output` (BERT)."""
    path = next(name for name, m in model.named_modules() if m is module)
    found = [getattr(module, name) for name in OUTPUTS if hasattr(module, name)]
    return found[0] if found else model.get_submodule(path.rsplit(".", 1)[0]).output.dense
