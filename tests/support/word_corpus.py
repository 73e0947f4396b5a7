"""Texts of a few words, drawn with a fixed seed, for tokenizers to learn."""

import numpy as np

SYLLABLES = [
    "ba",
    "con",
    "di",
    "er",
    "fu",
    "gress",
    "ha",
    "in",
    "jo",
    "ki",
    "law",
    "men",
    "na",
    "or",
    "peo",
    "ple",
    "que",
]


SYLLABLES += ["re", "state", "tion", "un", "vi", "we", "xy", "ya", "zen"]


WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in ("", "s", "ed")]


def corpus():
    drawn = np.random.default_rng(0).integers(0, len(WORDS), (400, 12))
    return [" ".join(WORDS[i] for i in row) + ", 1790.\n\n(Applause.)" for row in drawn]
