"""LoRA (Hu et al., arXiv 2106.09685): a frozen linear layer plus a trained product of two thin matrices.

LOMO's baseline puts rank 2 on the query and value projections, alpha 16, dropout 0.05. Names follow peft, so that
partition() gives the adapters on queries the blocks of queries.
"""

import math

from torch import Tensor, nn

from lowmem.errors import Misuse


class LoraLinear(nn.Module):
    """y = base(x) + alpha / rank * B A dropout(x), (..., in) -> (..., out); B starts at zero, so y starts as base(x)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float, device: str | None = None):
        super().__init__()
        where = {"device": device or base.weight.device, "dtype": base.weight.dtype}  # fully_shard wants one dtype
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **where)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **where)
        self.dropout, self.scale = nn.Dropout(dropout), alpha / rank
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))  # as the official code
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O): the base layer plus the scaled low-rank part."""
        base = self.base_layer(x)
        inner = self.lora_B(self.lora_A(self.dropout(x)))
        return base + (self.scale * inner).to(base.dtype)


def attach(
    model: nn.Module,
    rank: int = 2,
    alpha: float = 16.0,
    dropout: float = 0.05,
    targets: tuple[str, ...] = ("wq", "wv"),
    freeze: bool = True,
    device: str | None = None,
) -> None:
    """Wrap every linear layer called one of `targets`, in place. freeze: only the adapters train (else all does).

    device: of the adapters, where the layers have no weights yet (null: as theirs).
    """
    if not isinstance(rank, int) or rank < 1:
        raise Misuse(f"model.adapter.rank is {rank!r}; it must be a whole number of 1 or more")
    if freeze:
        model.requires_grad_(False)
    places = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if name in targets and isinstance(child, nn.Linear)
    ]
    if not places:
        raise Misuse(f"model.adapter.targets: no linear layer is called {' or '.join(targets)}")
    for module, name in places:
        setattr(module, name, LoraLinear(getattr(module, name), rank, alpha, dropout, device))
