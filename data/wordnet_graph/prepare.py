"""A graph of WordNet's nouns, a construction of ours: synsets are nodes, WordNet's pointers between nouns are edges.

Kept are the synsets that occur in the sense-tagged texts (a tag count above 0), of these the seven largest classes, of
these the largest connected part, so that no node is isolated. The class of a node is WordNet's lexicographer file
(noun.act, noun.artifact, ...); its features are the words of its gloss, 0 or 1 for each of the 2,000 most frequent.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from lowmem.data import archives, graphs

CLASSES, WORDS = 7, 2000


def arrays(raw: Path) -> dict[str, np.ndarray]:
    """{features: (5878, 2000) uint8, edges: (6430, 2) int32, labels: (5878,) int64, and train, val, test node numbers}."""
    [senses] = archives.read(raw, "*/index.sense").values()
    [nouns] = archives.read(raw, "*/data.noun").values()
    tagged = {
        key[1] for key in map(str.split, senses.decode("ascii").splitlines()) if "%1:" in key[0] and key[3] != "0"
    }
    synsets = {name: synset for name, synset in map(read, nouns.decode("utf-8").splitlines()) if name in tagged}
    largest = [number for number, _ in Counter(file for file, _, _ in synsets.values()).most_common(CLASSES)]
    kept = {name for name, (file, _, _) in synsets.items() if file in largest}
    edges = {tuple(sorted((a, b))) for a in kept for b in synsets[a][1] if b in kept and a != b}
    names = sorted(graphs.largest_part(kept, edges))
    place = {name: number for number, name in enumerate(names)}
    labels = np.array([largest.index(synsets[name][0]) for name in names])
    return {
        "features": bag_of_words([synsets[name][2] for name in names]),
        "edges": np.array(sorted((place[a], place[b]) for a, b in edges if a in place), dtype=np.int32),
        "labels": labels,
        **graphs.split_by_class(labels, per_class=20, val=500, test=1000),
    }


def read(line: str) -> tuple[str, tuple[int, list[str], list[str]]]:
    """A line of data.noun (wndb(5WN)) -> (offset, (lexicographer file, offsets of nouns pointed at, words of the gloss))."""
    if line.startswith("  "):
        return "", (0, [], [])  # the licence
    facts, _, gloss = line.partition(" | ")
    fields = facts.split()
    pointers = fields[4 + 2 * int(fields[3], 16) :]  # behind the synset's own words
    found = [pointers[k + 1] for k in range(1, 4 * int(pointers[0]), 4) if pointers[k + 2] == "n"]
    return fields[0], (int(fields[1]), found, re.findall("[a-z]+", gloss.lower()))


def bag_of_words(texts: list[list[str]]) -> np.ndarray:
    """(texts, WORDS) uint8: which of the words that most texts hold are in a text; equal counts by alphabet."""
    counts = Counter(word for text in texts for word in set(text))
    columns = {word: k for k, word in enumerate(sorted(counts, key=lambda word: (-counts[word], word))[:WORDS])}
    features = np.zeros((len(texts), WORDS), dtype=np.uint8)
    for row, text in enumerate(texts):
        features[row, [columns[word] for word in text if word in columns]] = 1
    return features
