"""C4 with its own validation part."""

from collections.abc import Iterator
from pathlib import Path

from lowmem.data.sources import hub


def documents(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield ("train" or "val", text), the training pages first."""
    for split in ("train", "val"):
        for text in hub.documents(raw, split):
            yield split, text
