"""Names of optimizers as the command line has them, ours and other packages'; without PyTorch."""

from __future__ import annotations

from lowmem.errors import Misuse, nearest
from lowmem.optim import names

BACKWARD = "+backward"
INT8 = "+int8"
HAVE_INT8 = ("adam_mini", "adamw", "lion")
# torchao.optim: (bits of a code, weights that share an fp32 scale, entries of the fp32 table of codes that each moment has).
# A tensor (of a DTensor the local one) that is small or that the block does not divide keeps moments in its own dtype
# (github.com/pytorch/ao, torchao/optim: adam.py, subclass_8bit.py, subclass_4bit.py, subclass_fp8.py).
AO = {"ao_adamw8bit": (8, 256, 256), "ao_adamw4bit": (4, 128, 16), "ao_adamw_fp8": (8, 256, 0)}
FOREIGN = ("adamw_fused", "adamw_foreach", "adamw8bit", "paged_adamw", "paged_adamw8bit", *AO)


def optimizer_settings(name: str) -> dict:
    """Settings for optim.make from a name on the command line: adam_mini, adam_mini+int8 with a first moment of one byte,
    adam_mini+backward to run inside backward, adam_mini+int8+backward."""
    plain, *ways = name.split("+")
    inside, eight_bit = BACKWARD[1:] in ways, INT8[1:] in ways
    known = (*names(), *FOREIGN)
    if plain == "ao_adamw_offload":
        raise Misuse(
            "ao_adamw_offload: torchao steps it on the CPU, whose speed is not modelled; see --offload of our own"
        )
    if plain not in known:
        raise Misuse(f"unknown optimizer {name!r}{nearest(plain, known)}")
    if len(ways) != inside + eight_bit:  # an unknown one, or one twice
        raise Misuse(f"optimizer {name!r}: a name may end in {INT8} and in {BACKWARD}, each once")
    if inside and plain in FOREIGN:
        raise Misuse(f"{plain} is not simulated inside backward; drop {BACKWARD}, or use adamw{BACKWARD}")
    if inside and plain in ("lomo", "adalomo"):
        raise Misuse(f"{plain} runs inside backward already; drop {BACKWARD}")
    if eight_bit and plain not in HAVE_INT8:
        raise Misuse(
            f"{name}: the first moment in 8 bits is for adam_mini, adamw and lion; drop {INT8}, or --state int8"
        )
    settings = {"state_dtype": "int8"} if eight_bit else {}
    return {"name": plain, **settings, **({"backward": {}} if inside else {})}
