"""Two tasks made from WordNet's example sentences (Fellbaum 1998), as stand-ins for SuperGLUE's WiC and RTE.

wic: does a word mean the same in two sentences? Both sentences are WordNet's examples of the word: of one sense, or of
two. The original WiC was made in this way from WordNet and two other dictionaries. rte: does a sentence follow from
another, when a noun is replaced by its hypernym (it mostly does) or by a sister term (it mostly does not)? The labels
of rte follow from the construction and no person checked them. Words of the validation split occur in no training pair.
"""

import io
import json
import random
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import BinaryIO

from lowmem.data import archives

HELD_OUT = 8  # every eighth word is for validation
MOST_PAIRS = 3  # of a word and a label, as in WiC
SHORTEST = 4  # words of a sentence


def files(raw: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (file name, open stream)."""
    nouns, verbs = (synsets(raw, kind) for kind in ("noun", "verb"))
    for name, pairs in (("wic", meanings(nouns, verbs)), ("rte", substitutions(nouns))):
        for split, rows in balanced(pairs).items():
            yield f"{name}.{split}.jsonl", io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())


def synsets(raw: Path, kind: str) -> dict[str, dict]:
    """{offset: {words, hypernyms, hyponyms, sentences}} of data.noun or data.verb (wndb(5WN))."""
    [text] = archives.read(raw, f"*/data.{kind}").values()
    found = {}
    for line in text.decode("utf-8").splitlines():
        if line.startswith("  "):
            continue  # the licence
        data, _, gloss = line.partition(" | ")
        fields = data.split(" ")
        count = int(fields[3], 16)
        words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
        at = 4 + 2 * count
        pointers = [fields[k : k + 4] for k in range(at + 1, at + 1 + 4 * int(fields[at]), 4)]
        up, down = ([p[1] for p in pointers if p[0] == sign and p[2] == kind[0]] for sign in ("@", "~"))
        sentences = [s.strip() for s in re.findall(r'"([^"]+)"', gloss)]
        sentences = [s for s in sentences if len(s.split()) >= SHORTEST]
        found[fields[0]] = {"words": words, "hypernyms": up, "hyponyms": down, "sentences": sentences}
    return found


def meanings(*kinds: dict[str, dict]) -> Iterator[tuple[str, dict]]:
    """(word, row) with label 1 for two sentences of one sense, 0 for two senses."""
    for found in kinds:
        usages: dict[str, list[tuple[str, str]]] = {}
        for offset, synset in found.items():
            for word in synset["words"] if synset["sentences"] else ():
                form = rf"\b{re.escape(word)}(s|es|d|ed|ing)?\b"
                near = [s for s in synset["sentences"] if word.lower() in s.lower()]  # cheaper than the exact search
                fitting = [(offset, sentence) for sentence in near if re.search(form, sentence, re.IGNORECASE)]
                usages.setdefault(word.lower(), []).extend(fitting)
        for word, sentences in sorted(usages.items()):
            draw = random.Random(word)
            pairs = list(combinations(sentences, 2))
            draw.shuffle(pairs)
            for label in (1, 0):
                fitting = [(a, b) for a, b in pairs if (a[0] == b[0]) == bool(label) and a[1] != b[1]]
                for (_, first), (_, second) in fitting[:MOST_PAIRS]:
                    yield word, {"word": word, "sentence1": first, "sentence2": second, "label": label}


def substitutions(nouns: dict[str, dict]) -> Iterator[tuple[str, dict]]:
    """(word, row) with label 0 (follows) for a hypernym, 1 for a sister term, as RTE numbers its answers."""
    for offset, synset in sorted(nouns.items()):
        sisters = [s for up in synset["hypernyms"] for s in nouns[up]["hyponyms"] if s != offset]
        for word in synset["words"]:
            draw = random.Random(f"{offset} {word}")
            for sentence in synset["sentences"]:
                if word != word.lower() or word not in sentence or not sisters:
                    continue
                place = re.search(rf"\b(an? )?{re.escape(word)}\b", sentence)
                if not place:
                    continue
                for label, others in ((0, synset["hypernyms"]), (1, sisters)):
                    other = nouns[draw.choice(others)]["words"][0]
                    if other != other.lower() or other in synset["words"]:
                        continue
                    article = ("an " if other[0] in "aeiou" else "a ") if place[1] else ""
                    hypothesis = sentence[: place.start()] + article + other + sentence[place.end() :]
                    yield word, {"premise": sentence, "hypothesis": hypothesis, "label": label}


def balanced(pairs: Iterator[tuple[str, dict]]) -> dict[str, list[dict]]:
    """{train, val} with as many rows of either label, in an order drawn once; whole words go to one split."""
    splits: dict[str, dict[int, list[dict]]] = {"train": {0: [], 1: []}, "val": {0: [], 1: []}}
    for word, row in pairs:
        held_out = random.Random(f"split {word}").randrange(HELD_OUT) == 0
        splits["val" if held_out else "train"][row["label"]].append(row)
    made = {}
    for split, by_label in splits.items():
        draw, size = random.Random(0), min(map(len, by_label.values()))
        rows = [row for label in (0, 1) for row in draw.sample(by_label[label], size)]
        draw.shuffle(rows)
        made[split] = rows
    return made
