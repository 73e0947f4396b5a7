"""What an answer is worth: a scalar head on a language model, or a rule that a reader can check.

A reward model is the language model with its output layer replaced by one row (Stiennon et al., arXiv 2009.01325); the
score of a text is its value at the last token.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse


def with_scalar_head(model: nn.Module, device: str) -> nn.Module:
    """The model, in place, with a fresh head of one output in place of the one over the vocabulary."""
    width, dtype = model.config.n_embd, model.head.weight.dtype
    model.head = nn.Linear(width, 1, bias=False, device=device, dtype=dtype)
    nn.init.normal_(model.head.weight, std=(width + 1) ** -0.5)
    return model


def scores(model: nn.Module, texts: list[list[int]], end: int) -> Tensor:
    """The scalar at the last token of each text, (B,), in fp32. Padding stands behind, where nothing sees it."""
    device, width = next(model.parameters()).device, max(map(len, texts))
    tokens = torch.tensor([text + [end] * (width - len(text)) for text in texts], device=device)
    last = torch.tensor([len(text) - 1 for text in texts], device=device)
    return model(tokens, at=(torch.arange(len(texts), device=device), last))[:, 0].float()


def bradley_terry(better: Tensor, worse: Tensor) -> Tensor:
    """Mean of -log sigmoid(better - worse), (B,) each: the preferred answer wins with probability sigmoid(difference)."""
    return -F.logsigmoid(better - worse).mean()


def share(pattern: str, text: str) -> float:
    """The share of a text's characters that match a pattern such as "[aeiou]"; 0 for an empty text."""
    return len(re.findall(pattern, text)) / len(text) if text else 0.0


def checked(pattern: str) -> str:
    """The pattern, if it is one that matches single characters."""
    try:
        if re.compile(pattern).fullmatch("") is None:
            return pattern
    except re.error as error:
        raise Misuse(f"measure.reward.share: {pattern!r} is not a regular expression ({error})") from error
    raise Misuse(f"measure.reward.share: {pattern!r} also matches nothing; name characters, as in '[aeiou]'")
