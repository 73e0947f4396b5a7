"""Factored second moments, shared by Adafactor, AdaLomo and CAME (Shazeer and Stern, arXiv 1804.04235, section 3).

Tensors of two or more axes keep one mean per row and one per column of their last two axes; others keep all squares.
"""

import torch
from torch import Tensor

from lowmem.optim.core.rule import TensorView

LARGEST = 1e30  # of a mean of squares: one gradient of 1e20 must not make a moment infinite for good


def is_factored(shape: tuple[int, ...]) -> bool:
    """Whether a parameter's second moment is kept as rows and columns: from two axes on."""
    return len(shape) >= 2


def names(shape: tuple[int, ...], *pairs: str) -> tuple[str, ...]:
    """State names of the row and column means under each of the given names; none where a tensor is not factored."""
    return tuple(f"{name}_{axis}" for name in pairs for axis in ("row", "col")) if is_factored(shape) else ()


def init(p: Tensor, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> dict[str, Tensor]:
    """Zeroed state of a parameter of that full shape: name_row (..., R, 1) and name_col (..., 1, C), or name like p.

    Always fp32 or wider.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    if not is_factored(shape):
        return {name: torch.zeros_like(p, dtype=dtype)}
    rows = torch.zeros((*shape[:-1], 1), dtype=dtype, device=p.device)
    columns = torch.zeros((*shape[:-2], 1, shape[-1]), dtype=dtype, device=p.device)
    return {f"{name}_row": rows, f"{name}_col": columns}


def sums(x: Tensor) -> list[Tensor]:
    """Row sums (..., R, 1) and column sums (..., 1, C) of a tensor's last two axes."""
    return [x.sum(-1, keepdim=True), x.sum(-2, keepdim=True)]


def moments(w: TensorView, name: str, sums: list[Tensor], gain) -> list[Tensor]:
    """Running means from complete sums; factors (..., R, 1), (..., 1, C) whose product is v^-1/2, v = row x col / mean(row)."""
    row, column = w.state[f"{name}_row"], w.state[f"{name}_col"]
    row.lerp_((sums[0] / w.frame[-1]).clamp_(max=LARGEST), gain)
    column.lerp_((sums[1] / w.frame[-2]).clamp_(max=LARGEST), gain)
    share = (row / row.mean(-2, keepdim=True)).clamp_(
        min=torch.finfo(row.dtype).tiny
    )  # 0 beside rows 1e38 times as large
    return [share.rsqrt(), column.rsqrt()]
