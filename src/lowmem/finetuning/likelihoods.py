"""What each answer to a question costs a language model; answer_scores.py says what follows from the costs.

A question and its answers form a tree of tokens: the text once, its answers as branches. Questions that begin alike, as
the answers to one paragraph of MultiRC do, are branches of one tree, so a pass reads what they share once. The trees of a
pass lie one behind the other, without padding.
"""

import itertools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem.finetuning.answer_scores import Costs
from lowmem.finetuning.examples import Example

SHARED = 32  # tokens: questions that begin with fewer in common are trees of their own
LARGEST = 1024  # tokens of a tree that holds several questions: attention costs the square of it


class Tree:
    """Token ids with the place of the token before each in its text, and where which token of an option is predicted."""

    def __init__(self):
        self.tokens, self.parents, self.depths = [], [], []
        self.columns, self.targets, self.options = [], [], []  # options: (question, option) of a target
        self.known: dict[tuple[int, int], int] = {}

    def add(self, question: int, example: Example) -> None:
        """A question's text and its options; what the tree holds already is shared."""
        for option, answer in enumerate(example.options):
            text, at = [*example.source, *answer], -1
            for place, (token, target) in enumerate(itertools.pairwise(text)):
                at = self.child(at, token, place)
                if place >= len(example.source) - 1:
                    self.columns.append(at)
                    self.targets.append(target)
                    self.options.append((question, option))

    def child(self, parent: int, token: int, depth: int) -> int:
        """Index of the node for a token below a parent; a new one where there is none yet."""
        key = (parent, token)
        if key not in self.known:
            self.known[key] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(depth)
        return self.known[key]

    def mask(self) -> np.ndarray:
        """(T, T): whether a token sees another, which stands before it in its text or is itself."""
        seen = np.eye(len(self.tokens), dtype=bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                seen[place] |= seen[parent]
        return seen


def trees(found: list[Example]) -> list[Tree]:
    """All questions, those that begin alike in one tree."""
    grown: list[Tree] = []
    before: list[int] = []
    for number in sorted(range(len(found)), key=lambda k: found[k].source):
        source = found[number].source
        alike = next(
            (k for k, pair in enumerate(zip(source, before)) if pair[0] != pair[1]), min(map(len, (source, before)))
        )
        if not grown or alike < SHARED or len(grown[-1].tokens) + len(source) - alike > LARGEST:
            grown.append(Tree())
        grown[-1].add(number, found[number])
        before = source
    return grown


def passes(grown: list[Tree], tokens: int) -> list[list[Tree]]:
    """Trees in groups of at most this many tokens, but of one tree at least."""
    groups, size = [], tokens
    for tree in grown:
        size += len(tree.tokens)
        if size > tokens:
            groups.append([])
            size = len(tree.tokens)
        groups[-1].append(tree)
    return groups


def inputs(group: list[Tree], device: str) -> tuple[dict, Tensor, tuple[Tensor, Tensor]]:
    """(keywords of Llama.forward, targets (N,), (question, option) of each target) of one pass."""
    lengths = [len(tree.tokens) for tree in group]
    starts = np.cumsum([0, *lengths[:-1]])
    columns = np.concatenate([np.array(tree.columns) + start for tree, start in zip(group, starts)])

    def row(name: str) -> Tensor:
        return torch.tensor([number for tree in group for number in getattr(tree, name)], device=device)

    columns = torch.as_tensor(columns, device=device)
    keywords = {"tokens": row("tokens")[None], "positions": row("depths")[None], "lengths": lengths}
    keywords["mask"] = [torch.as_tensor(tree.mask(), device=device)[None, None] for tree in group]
    keywords["at"] = (torch.zeros_like(columns), columns)
    question, option = row("options").unbind(1)
    return keywords, row("targets"), (question, option)


def costs(model: torch.nn.Module, found: list[Example], groups: list[list[Tree]], device: str) -> Costs:
    """What the options of the questions cost. groups: passes(trees(found), ...), which no training changes."""
    nats = torch.zeros(len(found), len(found[0].options), device=device)
    for group in groups:
        keywords, targets, places = inputs(group, device)
        logits = model(**keywords)  # (N, V)
        losses = F.cross_entropy(logits.float(), targets, reduction="none")  # (N,)
        nats.index_put_(places, losses, accumulate=True)
    lengths = np.array([[len(option) for option in example.options] for example in found])
    return Costs(nats.cpu().numpy(), lengths, np.array([example.label for example in found]))
