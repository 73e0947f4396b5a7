"""Validation of hand-written files against workflow/schemas: one line names file, place and mistake."""

import math
from pathlib import Path

from lowmem.errors import Failed, Misuse, nearest
from lowmem.files import read_text, read_yaml, strict_yaml

_validators: dict = {}
_passed: set = set()


def check(root: Path, value, schema: str, path: Path, place: str = "") -> None:
    """Validate against workflow/schemas/<schema>.schema.yaml; the first problem becomes a one-line Misuse."""
    import jsonschema

    key = (root, schema)
    if key not in _validators:
        place_of_schema = place_of(root, schema)
        loaded = read_yaml(place_of_schema)
        if not isinstance(loaded, dict) or not loaded:
            raise Failed(f"{place_of_schema} is not a schema; restore it, e.g. with git checkout")
        types = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
        types = types.redefine("number", lambda _, value: type(value) in (int, float) and math.isfinite(value))
        _validators[key] = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=types)(loaded)
    seen = (*key, repr(value))
    if seen in _passed:  # many runs share a tier and stages; a check takes milliseconds
        return
    if (other := key_of_another_kind(value)) is not None:  # jsonschema takes keys for texts
        raise Misuse(f"{path}{place}: the key {str(other)[:80]} is not text; put it in quotes")
    problem = jsonschema.exceptions.best_match(_validators[key].iter_errors(value))
    if problem is None:
        _passed.add(seen)
        return
    keys = list(problem.absolute_path)
    message = problem.message if len(problem.message) <= 300 else f"{problem.message[:297]}..."
    unknown: list[str] = []
    if problem.validator == "additionalProperties" and isinstance(problem.instance, dict):
        known = problem.schema.get("properties", {})
        unknown = sorted(map(str, set(problem.instance) - set(known)))
        message = f"unknown key {unknown[0][:80]!r}{nearest(unknown[0][:80], known)}"
    elif problem.schema is False:  # whose place is that of what holds it
        keys.append(problem.absolute_schema_path[-1])
        message = "it means nothing to this task; leave it out"
    location = ".".join(map(str, keys)) or "top level"
    line = line_in(Path(root) / path, [*keys, *unknown[:1]])
    raise Misuse(f"{path}{f', line {line}' if line else ''}{place}: {location[:200]}: {message}")


def key_of_another_kind(value):
    """The first key that is no text, in a mapping or in what it holds; None without one."""
    if isinstance(value, dict):
        for key, inside in value.items():
            if not isinstance(key, str):
                return key
            if (found := key_of_another_kind(inside)) is not None:
                return found
    elif isinstance(value, list):
        return next((found for found in map(key_of_another_kind, value) if found is not None), None)
    return None


def line_in(path: Path, keys: list) -> int | None:
    """The line of a value in a YAML file, or in an experiment's settings; None where it is absent."""
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return None
    text = read_text(path)
    return strict_yaml.line_of(text, keys) or strict_yaml.line_of(text, ["settings", *keys])


def place_of(root: Path, schema: str) -> Path:
    """The schema's file: in the given checkout, else in the one that this package belongs to."""
    name = f"workflow/schemas/{schema}.schema.yaml"
    own = Path(root) / name
    return own if own.is_file() else Path(__file__).resolve().parents[3] / name
