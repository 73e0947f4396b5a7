"""The text of a module that provenance hashes: equal while it computes the same, different when it may not."""

import ast
import hashlib

import pytest

from lowmem.provenance import syntax

BEFORE = '''
"""A module."""
import math
from lowmem.blocks import partition
import numpy as np
import warnings


def area(radius, scale=1.0):
    """Of a circle."""
    if radius < 0:
        warnings.warn(f"{radius} is below 0", stacklevel=2)
        raise ValueError(f"no circle has the radius {radius}", radius)
    blocks = np.ones(3)
    return scale * math.pi * radius**2 + partition(blocks).sum()  # in its unit


class Square:
    """Four sides."""
    sides = 4

    def grown(self, by):
        step = 1
        def grow(side):
            size = side + step
            return [size * by for by in range(by)]
        return grow(self.sides)
'''
ALL_SORTS = r"""
import os.path as p
from lowmem import kept
LIMIT: int = 10_000
async def fetch(url, *more, key=None, **rest):
    global LIMIT
    async with kept.open(url) as file, other(f"{url!r:>{LIMIT}} is {key=}" "joined") as two:
        return [await x async for x in file if (y := x) is not None], {**rest, "a": 1e-3}
def choose(point):
    match point:
        case {"x": 0, **others} | [0, *others]: return b"\0" + 'it"s'.encode()
        case kept.Point(x=1.5) if point[1:, ::2] @ 2j: return lambda a, /, b=...: a if a else -b
    try: del point
    except* (OSError, ValueError) as error: raise RuntimeError from error
    for i in range(3): yield from p.join(i)
    else: assert 0 < LIMIT <= 2**70, not True
"""


def text(source: str, module: str = "lowmem.shapes", origin=str) -> list[tuple[str, str]]:
    return syntax.definitions(ast.parse(source), module, origin)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # in its unit", "  # a comment more"),
        ('"""Of a circle."""', '"""Of a circle\n    in its unit."""'),
        ('    """Four sides."""\n', ""),
        ('"""A module."""\n', ""),
        ("import math\nfrom lowmem.blocks import partition\n", "from lowmem.blocks import partition\nimport math\n"),
        ("import math\n", "import math\nimport random\n"),
        ("scale * math.pi * radius**2 + partition", "(\n        scale * math.pi\n        * radius ** 2) + partition"),
        ("from lowmem.blocks import partition\n", "from lowmem.blocks import partition as split\n"),
        ("from lowmem.blocks import partition\n", "from lowmem import blocks as shapes\n"),
        ("is below 0", "is negative"),
        ("no circle has the radius", "a circle of radius"),
        ('f"no circle has the radius {radius}"', '"no circle has a radius of " + str(radius)'),
        ("step", "stride"),
        ("grow(", "larger("),
        ("size", "longer"),
    ],
)
def test_what_decides_nothing_changes_nothing(old, new):
    after = BEFORE.replace(old, new)
    name = {"split": "split(", "shapes": "shapes.partition("}.get(new.strip().rpartition(" ")[2], "partition(")
    assert after != BEFORE and text(after.replace(" partition(", f" {name}")) == text(BEFORE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sides = 4", "sides = 5"),
        ("sides = 4", "sides = 4.0"),
        ("sides = 4", 'sides = "4"'),
        ("scale=1.0", "scale=1.00001"),
        ("scale=1.0", "scale"),
        ("scale * math.pi *", "scale + math.pi *"),
        ("math.pi", "math.tau"),
        ("import math\n", "import cmath as math\n"),
        ("from lowmem.blocks import partition\n", "from lowmem.layers import partition\n"),
        ("    blocks = np.ones(3)\n", ""),
        ("class Square:", "class Rectangle:"),
        ("if radius < 0", "if radius < 1"),
        ("raise ValueError", "raise TypeError"),
        ('{radius}", radius)', '{radius}", 0)'),
        ("stacklevel=2", "stacklevel=3"),
        ("by in range(by)", "size in range(by)"),
        ("def grow(side)", "def grow(length)"),
        ("def grown(", "def larger("),
        ("size = side + step", "size = side + size"),
        ("        step = 1\n", "        global step\n        step = 1\n"),
    ],
)
def test_what_may_decide_something_changes_the_text(old, new):
    after = BEFORE.replace(old, new)
    assert after != BEFORE and text(after) != text(BEFORE)


def test_a_local_variable_is_not_taken_for_the_module_of_its_name():
    """Else it would be renamed with the module."""
    source = "from lowmem import kept\ndef read(path):\n    kept = path\n    return kept\ndef rows():\n    return kept.rows\n"
    [(_, local), (_, module)] = text(source)
    assert "lowmem.kept" not in local and "lowmem.kept.rows" in module


def test_names_are_those_of_before_a_move():
    def before(name: str) -> str:
        return name.replace("lowmem.pipeline.archive", "lowmem.kept")

    old = text("from lowmem import kept\n\n\ndef rows():\n    return kept.rows()\n")
    new = text("from lowmem.pipeline import archive\n\n\ndef rows():\n    return archive.rows()\n", origin=before)
    assert new == old
    body = "ROWS = 3\n\n\ndef rows():\n    return ROWS\n"
    assert text(body, "lowmem.pipeline.archive", before) == text(body, "lowmem.kept")


def test_every_version_of_python_writes_the_same_text():
    """The hash was taken with Python 3.11."""
    written = "\n".join(piece for _, piece in text(ALL_SORTS))
    assert hashlib.sha256(written.encode()).hexdigest()[:16] == "458b3993224f67b9"
