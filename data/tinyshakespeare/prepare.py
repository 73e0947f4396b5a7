"""Tiny Shakespeare: one text, of which the last tenth of the characters is held out, as nanoGPT does."""

from collections.abc import Iterator
from pathlib import Path

from lowmem.data import archives


def documents(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield ("train", first 90 %) and ("val", the rest)."""
    [packed] = archives.read(raw, "*/input.txt").values()
    text = packed.decode("utf-8")
    cut = int(0.9 * len(text))
    yield "train", text[:cut]
    yield "val", text[cut:]
