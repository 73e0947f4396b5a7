"""Texts that end in an answer: their tokens, their order, and a loss on the answers' tokens alone."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Example:
    """Token ids of a question and of its options, each option with the end token."""

    source: list[int]
    options: list[list[int]]
    label: int

    @property
    def length(self) -> int:
        """Tokens that a pass over the question with the right answer reads."""
        return len(self.source) + len(self.options[self.label]) - 1


def order(found: list[Example], seed: int, epoch: int, size: int, bucket: int) -> list[np.ndarray]:
    """Indices of each batch of an epoch: shuffled, then sorted by length within every `bucket` batches."""
    draw = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shuffled = draw.permutation(len(found))
    if bucket > 1:
        pieces = [shuffled[k : k + bucket * size] for k in range(0, len(found), bucket * size)]
        pieces = [sorted(piece, key=lambda k: found[k].length) for piece in pieces]
        batches = [np.array(piece[k : k + size]) for piece in pieces for k in range(0, len(piece), size)]
        return [batches[k] for k in draw.permutation(len(batches))]
    return [shuffled[k : k + size] for k in range(0, len(found), size)]


def picked(found: list, seed: int, index: int, size: int, parts: int, bucket: int = 1) -> list:
    """Those of micro-batch `index`, when each step takes `size` in `parts` micro-batches; every epoch in a new order."""
    step, part = divmod(index, parts)
    epoch, place = divmod(step, -(-len(found) // size))
    batch = order(found, seed, epoch, size, bucket)[place]
    chosen = np.array_split(batch, parts)[part]
    return [found[k] for k in (chosen if len(chosen) else batch[:1])]


def padded(chosen: list[Example], end: int, device: str) -> dict[str, Tensor]:
    """tokens (B, T), padded behind, where nothing sees it; rows, columns, targets (N,): the places that predict answers."""
    texts = [example.source + example.options[example.label] for example in chosen]
    tokens = torch.full((len(texts), max(map(len, texts)) - 1), end)
    rows, columns, targets = [], [], []
    for row, (example, text) in enumerate(zip(chosen, texts, strict=True)):
        tokens[row, : len(text) - 1] = torch.tensor(text[:-1])
        answer = range(len(example.source), len(text))
        rows += [row] * len(answer)
        columns += [place - 1 for place in answer]
        targets += [text[place] for place in answer]
    found = {"tokens": tokens, "rows": rows, "columns": columns, "targets": targets}
    return {key: torch.as_tensor(value).to(device) for key, value in found.items()}


def packed(chosen: list[Example], device: str) -> dict:
    """The same texts one behind the other in one row, tokens (1, T), without padding; lengths: of each. See padded()."""
    texts = [(example.source + example.options[example.label])[:-1] for example in chosen]
    ends = list(itertools.accumulate(map(len, texts)))
    columns, targets = [], []
    for example, end in zip(chosen, ends, strict=True):
        answer = example.options[example.label]
        columns += range(end - len(answer), end)
        targets += answer
    found = {
        "tokens": [list(itertools.chain(*texts))],
        "rows": [0] * len(columns),
        "columns": columns,
        "targets": targets,
    }
    made = {key: torch.tensor(value, device=device) for key, value in found.items()}
    return {**made, "lengths": list(map(len, texts))}


def loss(model: torch.nn.Module, batch: dict) -> Tensor:
    """Mean cross-entropy over the answers' tokens, in nats, of a batch that is padded() or packed()."""
    logits = model(batch["tokens"], at=(batch["rows"], batch["columns"]), lengths=batch.get("lengths"))  # (N, V)
    return F.cross_entropy(logits.float(), batch["targets"])


def by_length(found: list[Example], tokens: int) -> list[list[Example]]:
    """Examples of similar length in groups of at most this many tokens, padding counted."""
    groups: list[list[Example]] = [[]]
    for example in sorted(found, key=lambda e: len(e.source)):
        size = len(example.source) + sum(map(len, example.options))
        if groups[-1] and size * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(example)
    return groups
