"""Answers of a language model, token by token, with the keys and values of earlier tokens kept (the cache)."""

import contextlib

import torch
from torch import Tensor

from lowmem import distributed
from lowmem.training import fsdp


def generate(
    model, prompts: list[list[int]], new: int, end: int, draw: torch.Generator | None = None, greedy: int = 0
) -> list[list[int]]:
    """An answer of at most `new` tokens to each prompt, with the end token where it came.

    The last `greedy` rows, or all without a generator, take the likeliest token; the others draw at temperature 1.
    Prompts of several lengths are padded in front, where nothing sees it. draw: on the model's device.
    """
    with torch.no_grad(), fsdp.gathered(model) if distributed.world() > 1 else contextlib.nullcontext():
        return _generate(model, prompts, new, end, draw, greedy)


def _generate(
    model, prompts: list[list[int]], new: int, end: int, draw: torch.Generator | None, greedy: int
) -> list[list[int]]:
    """generate() once the weights are at hand."""
    device = next(model.parameters()).device
    count, width = len(prompts), max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (B,)
    tokens = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in prompts], device=device)  # (B, T)
    column = torch.arange(width, device=device)
    text = column >= (width - lengths)[:, None]  # (B, T), False on padding
    positions = (column - (width - lengths)[:, None]).clamp(min=0)
    seen = text[:, None, :] & (column[:, None] >= column)  # (B, T, T)
    seen |= torch.eye(width, dtype=torch.bool, device=device)  # padding must see something
    rows, cache = torch.arange(count, device=device), model.empty_cache()
    at = (rows, torch.full_like(rows, width - 1))
    logits = model(tokens, positions=positions, mask=seen[:, None], at=at, cache=cache)  # (B, V)
    likeliest = rows >= (0 if draw is None else count - greedy)
    answers, going = [], torch.ones_like(likeliest)
    for step in range(new):
        token = chosen(logits, likeliest, draw).where(going, end)
        answers.append(token)
        going &= token != end
        if step + 1 == new or not somewhere(going.any().item()):
            break
        text = torch.cat((text, torch.ones_like(text[:, :1])), dim=1)
        at = (rows, torch.zeros_like(rows))
        logits = model(
            token[:, None], positions=(lengths + step)[:, None], mask=text[:, None, None], at=at, cache=cache
        )
    return [ended(row, end) for row in torch.stack(answers, dim=1).tolist()]


def chosen(logits: Tensor, likeliest: Tensor, draw: torch.Generator | None) -> Tensor:
    """The next token of each row, (B,). logits (B, V); likeliest (B,): rows that do not draw."""
    best = logits.argmax(dim=-1)
    if draw is None:
        return best
    drawn = torch.multinomial(logits.float().softmax(dim=-1), 1, generator=draw)[:, 0]
    return torch.where(likeliest, best, drawn)


def ended(row: list[int], end: int) -> list[int]:
    """The row up to its first end token, which stays."""
    return row[: row.index(end) + 1] if end in row else row


def somewhere(flag: bool) -> bool:
    """With sharded weights every rank has to go on until the last one has ended."""
    return distributed.any_rank(flag) if distributed.world() > 1 else flag
