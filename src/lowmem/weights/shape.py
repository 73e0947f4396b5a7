"""What a checkpoint says of its model, looked at before memory is taken for it."""

import math
from pathlib import Path

from lowmem.data.limits import MOST
from lowmem.errors import Failed


def checked(config: dict, place: Path) -> dict:
    """The settings of llama.build that a file states, unchanged; Failed names the first that no model can have."""
    for key, most in MOST.items():
        value = config.get(key)
        if not (is_whole(value, 1, most) or (key == "head_dim" and value is None)):
            raise Failed(f"{place}: {key} is {shown(value)}; a whole number from 1 to {most} is needed")
    for key in ("rope_base", "norm_eps"):
        value = config[key]
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise Failed(f"{place}: {key} is {shown(value)}; a finite number above 0 is needed")
    if not isinstance(config["tied"], bool):
        raise Failed(f"{place}: tied is {shown(config['tied'])}; true or false is needed")
    return config


def token(value, size: int, place: Path) -> int:
    """The number of a token among `size`; Failed when it is none."""
    if not is_whole(value, 0, size - 1):
        raise Failed(f"{place}: the token that ends a text is {shown(value)}; a whole number below {size} is needed")
    return value


def is_whole(value, least: int, most: int) -> bool:
    """Whether a value is a whole number between these bounds, which true and false are not."""
    return type(value) is int and least <= value <= most


def shown(value) -> str:
    """A value in a message, which may be an integer of thousands of digits or a long list."""
    if type(value) is int and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    return repr(value)[:60]
