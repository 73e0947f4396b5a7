"""OpenWebText: it has no validation part, so every 2000th page is held out (nanoGPT holds out the same share)."""

from collections.abc import Iterator
from pathlib import Path

from lowmem.data.sources import hub

EVERY = 2000


def documents(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield ("train" or "val", text) in the order of the dataset."""
    for index, text in enumerate(hub.documents(raw, "train")):
        yield ("val" if index % EVERY == 0 else "train"), text
