"""Factored second moments, shared by Adafactor, AdaLomo and CAME (Shazeer and Stern, arXiv 1804.04235, section 3).

Tensors of two or more axes keep one mean per row and one per column of their last two axes; others keep all squares.
"""

import math

import torch
from torch import Tensor


def is_factored(p: Tensor) -> bool:
    return p.ndim >= 2


def init(p: Tensor, dtype: torch.dtype, row: str, column: str, whole: str) -> dict[str, Tensor]:
    """Zeroed state under the given key names: row (..., R), column (..., C), or whole like p. Always fp32 or wider."""
    dtype = torch.promote_types(dtype, torch.float32)
    if is_factored(p):
        rows = torch.zeros(p.shape[:-1], dtype=dtype, device=p.device)
        columns = torch.zeros(p.shape[:-2] + p.shape[-1:], dtype=dtype, device=p.device)
        return {row: rows, column: columns}
    return {whole: torch.zeros_like(p, dtype=dtype)}


def sums(x: Tensor) -> list[Tensor]:
    """[row sums (..., R), column sums (..., C)] of a tensor's last two axes, or [x] itself when it is not factored."""
    return [x.sum(-1), x.sum(-2)] if is_factored(x) else [x]


def means(x: Tensor, totals: list[Tensor]) -> list[Tensor]:
    """Sums as means: rows over the last axis, columns over the one before."""
    return [totals[0] / x.shape[-1], totals[1] / x.shape[-2]] if is_factored(x) else totals


def inverse_root(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (..., R, 1) and (..., 1, C) whose product is v^-1/2 with v = row x column / mean(row)."""
    row_factor = (row / row.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1)
    return row_factor, column.unsqueeze(-2).rsqrt()


def rms(x: Tensor) -> Tensor:
    """Root mean square over all elements, a 0-dim tensor."""
    return torch.linalg.vector_norm(x) / math.sqrt(max(x.numel(), 1))
