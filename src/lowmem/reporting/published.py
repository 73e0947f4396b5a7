"""Values as the papers print them, out of data/published, beside which an exhibit sets ours."""

from pathlib import Path

from lowmem.errors import Misuse, nearest
from lowmem.files import read_yaml
from lowmem.pipeline import planning


def load(root: Path, header: dict) -> dict:
    """The published item that a header names, e.g. "adam_mini.table1", or a whole file ("independent"); else empty."""
    files = planning.published_files(header)
    if not files:
        return {}
    path, name = root / files[0], header["published"]
    loaded = read_yaml(path)
    if "." not in name:
        return loaded
    items = loaded["items"]
    if name not in items:
        raise Misuse(f"{path}: no item {name!r}{nearest(name, items)}")
    return items[name]


def printed(published: dict, what: str, **at) -> dict | None:
    """The published value of a quantity at a row: {value, unit, source, confidence, ...}; None where unknown."""
    for value in published.get("values", []):
        if value["what"] == what and value.get("at", {}) == at:
            return value
    return None


def published_entry(label: str, value: dict | None) -> list[dict]:
    """A published value as an entry of ExhibitResult.published; an empty list where it is unknown."""
    if value is None:
        return []
    entry = {"label": label, "value": value["value"], "unit": value.get("unit")}
    return [{**entry, "source": value["source"], "confidence": value["confidence"]}]
