"""What an experiment may say of a model: the fields of the dataclass Config in its file, read without importing PyTorch."""

import ast
import functools
import math
from pathlib import Path

from lowmem.data.limits import MOST
from lowmem.errors import Misuse, nearest

MODELS = Path(__file__).parents[1] / "models"
BESIDES = {
    "name",
    "size",
    "pretrained",
    "dtype",
    "adapter",
}  # not fields: which file, which named shape, weights, adapters


def check(model: dict, path: Path) -> None:
    """Misuse names an unknown key of config["model"], or a value of the wrong kind, and what it may be."""
    known = fields(MODELS / f"{model['name']}.py")
    for key, value in model.items():
        if key not in known and key not in BESIDES:
            raise Misuse(f"{path}: model: unknown key {key!r}{nearest(key, BESIDES | known.keys())}")
        if key in known and not fits(value, *known[key]):
            raise Misuse(f"{path}: model.{key}: {value!r} is not {wanted(*known[key])}")
        if isinstance(value, int) and value > MOST.get(key, value):
            raise Misuse(f"{path}: model.{key}: {value} is too large; at most {MOST[key]}")


@functools.cache
def fields(path: Path) -> dict[str, tuple[str, object]]:
    """{field: (its annotation, its default)} of the dataclass Config in a model's file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            found = [field for field in node.body if isinstance(field, ast.AnnAssign)]
            return {field.target.id: (ast.unparse(field.annotation), ast.literal_eval(field.value)) for field in found}
    raise Misuse(f"{path}: no class Config; a model's settings are the fields of its dataclass Config")


def fits(value, kind: str, default) -> bool:
    """Whether a value from YAML or JSON is of the annotated kind; sizes are at least 1 unless the default is less."""
    if kind.endswith("| None"):
        return value is None or fits(value, kind.removesuffix("| None").strip(), default)
    if kind.startswith("tuple[int"):
        return isinstance(value, (list, tuple)) and all(fits(one, "int", 1) for one in value) and len(value) > 0
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool) and value >= least(default)
    if kind == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return isinstance(value, {"bool": bool, "str": str}[kind])


def wanted(kind: str, default) -> str:
    """A description of the kind, for messages."""
    if kind.endswith("| None"):
        return f"{wanted(kind.removesuffix('| None').strip(), default)}, or null"
    names = {"float": "a finite number of 0 or more", "bool": "true or false", "str": "a text"}
    whole = f"a whole number of {least(default)} or more"
    return names.get(kind) or (whole if kind == "int" else "a list of whole numbers of 1 or more")


def least(default) -> int:
    """The smallest value that a count may take: 1, or its default where that is smaller."""
    return default if isinstance(default, int) and default < 1 else 1
