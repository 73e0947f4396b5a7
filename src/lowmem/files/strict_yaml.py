"""YAML as people mean it: no duplicate keys, only finite numbers, and no expansion of aliases beyond a limit.

YAML itself lets the last of two equal keys win, knows .nan, and lets 600 bytes of aliases stand for gigabytes.
"""

import math
import re

LARGEST = 5_000_000  # characters in a file
DEEPEST = 60  # levels
KINDS = {"str", "int", "float", "bool", "null", "map", "seq", "merge"}  # what JSON has too
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")  # YAML also reads 010 as 8 and 1:30 as 90
MOST = 1_000_000  # values once aliases are written out


class InvalidYaml(ValueError):
    """What is wrong, and in which line."""

    def __init__(self, problem: str, line: int | None = None):
        super().__init__(f"line {line}: {problem}" if line else problem)


def load(text: str):
    """The value of a YAML text. InvalidYaml, or what yaml raises, for anything else."""
    import yaml

    if len(text) > LARGEST:
        raise InvalidYaml(f"it has {len(text)} characters, more than {LARGEST}")
    if re.search(rf"(?:[\[{{]\s*|-\s+){{{DEEPEST}}}", text):
        raise InvalidYaml(f"it is nested more than {DEEPEST} levels deep")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        checked(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def line_of(text: str, keys: list) -> int | None:
    """The line of the value at a path of nested keys; None where there is no such path."""
    import yaml

    node, line = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pairs = [(named, value) for named, value in node.value if named.value == str(key)]
        else:
            inside = node.value if isinstance(node, yaml.SequenceNode) else []
            pairs = [(value, value) for value in inside[key : key + 1]] if isinstance(key, int) else []
        if not pairs:
            return None
        line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
    return line


def checked(node, sizes: dict[int, int], depth: int = 0) -> int:
    """How many values a node stands for, aliases written out; InvalidYaml for what is not allowed in it."""
    line = node.start_mark.line + 1
    if depth > DEEPEST:
        raise InvalidYaml(f"it is nested more than {DEEPEST} levels deep", line)
    if id(node) not in sizes:
        sizes[id(node)] = MOST  # an alias inside what it stands for ends at the limit
        inside = node.value if isinstance(node.value, list) else []
        pairs = [pair for pair in inside if isinstance(pair, tuple)]
        seen = set()
        for key, _ in pairs:
            name = (key.tag, key.value) if isinstance(key.value, str) else None
            if name in seen:
                raise InvalidYaml(f"duplicate key {key.value[:80]!r}", key.start_mark.line + 1)
            seen.add(name)
        if not inside and node.tag.endswith(":float") and not math.isfinite(float_of(node.value)):
            raise InvalidYaml(f"{node.value[:20]} is not a valid number", line)
        if node.tag.rpartition(":")[2] not in KINDS:
            raise InvalidYaml(
                f"{str(node.value)[:40]!r} is a {node.tag[-20:].rpartition(':')[2]}; put a text in quotes", line
            )
        if not inside and node.tag.endswith(":int") and not DECIMAL.fullmatch(node.value):
            raise InvalidYaml(f"{node.value[:40]} is not a decimal number; write one, or put a text in quotes", line)
        if not inside and node.tag.endswith(":int") and len(str(node.value)) > 40:
            raise InvalidYaml("a whole number of more than 40 digits", line)
        children = [child for pair in inside for child in (pair if isinstance(pair, tuple) else (pair,))]
        sizes[id(node)] = 1 + sum(checked(child, sizes, depth + 1) for child in children)
    if sizes[id(node)] >= MOST:
        raise InvalidYaml("its aliases stand for more than a file may hold", line)
    return sizes[id(node)]


def float_of(text: str) -> float:
    """The number of a float's text; what YAML writes otherwise than Python (.nan, 1:30) is recognised by its form."""
    if re.fullmatch(r"[-+]?\.(nan|inf)", text, re.IGNORECASE):
        return math.nan
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return 0.0
