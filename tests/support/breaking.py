"""Ways in which a file may be broken: what stands in it afterwards."""

import random
from collections.abc import Callable


def flipped(content: bytes, at: int) -> bytes:
    """The content with the bit of that number flipped."""
    return content[: at // 8] + bytes([content[at // 8] ^ (1 << at % 8)]) + content[at // 8 + 1 :]


def cut(content: bytes, chance: random.Random, other: bytes) -> bytes:
    return content[: chance.randrange(max(len(content), 1))]


def swapped(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Another file's content, repeated to the same length."""
    return (other * (len(content) // max(len(other), 1) + 1))[: len(content)]


def a_bit(content: bytes, chance: random.Random, other: bytes) -> bytes:
    return flipped(content, chance.randrange(8 * len(content))) if content else b"x"


WAYS: dict[str, Callable[[bytes, random.Random, bytes], bytes]] = {  # of a content, chance, and another file's content
    "cut": cut,
    "empty": lambda content, chance, other: b"",
    "zeros": lambda content, chance, other: bytes(len(content)),
    "swapped": swapped,
    "a bit": a_bit,
}
