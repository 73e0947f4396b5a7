"""What can be asked of adapters and packed base weights; without PyTorch. adapters.py says what they keep."""

from __future__ import annotations

import dataclasses

from lowmem.errors import Misuse, nearest

EVERY = "all-linear"
BASES = {  # bytes of scales per weight, beside its four bits
    "nf4": 4 / 64,  # an fp32 number per 64 weights
    "nf4-dq": 1 / 64 + 4 / (64 * 256),  # itself in 8 bits, with an fp32 number per 256 of them
    "gptq": (2 + 0.5) / 128,  # an fp16 scale and a 4-bit zero per 128 weights
}


@dataclasses.dataclass(frozen=True)
class Adapters:
    """rank, targets: names of linear layers, or "all-linear" (all but the output). base: "16" as the model is, or a key of
    BASES. dtype: of the adapters, "fp32" or "16" (None: fp32 on one GPU, 16 where fully_shard wants one dtype).
    rest: dtype of what is not packed, "16", or "fp32" as peft's prepare_model_for_kbit_training makes it. autocast: computing
    in 16 bits, whatever the dtypes."""

    rank: int = 16
    targets: tuple[str, ...] | str = EVERY
    base: str = "16"
    dtype: str | None = None
    rest: str = "16"
    autocast: bool = False
    dropout: float = 0.0


def check(adapters: Adapters) -> None:
    """Misuse for what no model can have."""
    if not isinstance(adapters.rank, int) or isinstance(adapters.rank, bool) or not 1 <= adapters.rank <= 65536:
        raise Misuse(f"lora {adapters.rank!r}: a rank is a whole number from 1 to 65536")
    if adapters.base not in ("16", *BASES):
        raise Misuse(f"base {adapters.base!r}{nearest(adapters.base, ('16', *BASES))}")
