"""Shakespeare in modern spelling: one document per work; two plays, the last of the alphabet (5.0 %), are held out."""

from collections.abc import Iterator
from pathlib import Path

from lowmem.data import archives

HELD_OUT = ("two_gentlemen_of_verona_gut.txt", "winters_tale_gut.txt")


def documents(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield ("train" or "val", text) in alphabetical order; the folio versions (*_gut_f.txt) repeat the same works."""
    texts = archives.read(raw, "*/shksprdata/texts/*_gut.txt")
    for name in sorted(texts, key=lambda name: name.rsplit("/", 1)[-1]):
        held_out = name.rsplit("/", 1)[-1] in HELD_OUT
        yield ("val" if held_out else "train"), texts[name].decode("utf-8")
