"""State of the Union addresses: one document per address; those from 2010 on (4.2 % of the text) are held out."""

from collections.abc import Iterator
from pathlib import Path

from lowmem.data import archives

HELD_OUT_FROM = 2010  # the last 12 of 232 years


def documents(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield ("train" or "val", text) in the order of years."""
    texts = archives.read(raw, "*/[12][0-9][0-9][0-9]_*.txt")  # 1790_george_washington_n.txt
    for name in sorted(texts, key=lambda name: name.rsplit("/", 1)[-1]):
        year = int(name.rsplit("/", 1)[-1][:4])
        yield ("val" if year >= HELD_OUT_FROM else "train"), texts[name].decode("utf-8")
