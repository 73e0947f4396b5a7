"""How well tables of letters predict the texts that the small language models are trained on.

A loss says little without a scale: this prints the cross entropy (nat per symbol) that interpolated Witten-Bell tables of
one, two and three symbols, counted on the training text, have on the validation text. A model that ends above the line of
two has not learned more than which letter follows which. Two readings bracket it: all training text, and its first
200,000 symbols, about what a short run sees. The report draws the first reading (TEXTS of the loss panels).

    python -m lowmem prepare sotu --tokenizer byte && python -m lowmem prepare prose --tokenizer char
    python benchmarks/ngram_entropies.py sotu-byte shakespeare-byte prose-char
"""

import argparse
from pathlib import Path

import numpy as np

from lowmem.data import prepare

ORDERS = (1, 2, 3)
SHORT = 200_000


def cross_entropies(train: np.ndarray, test: np.ndarray, symbols: int) -> list[float]:
    """Nat per symbol of `test` under tables of 1, 2, ... symbols of `train`, each interpolated with the one below."""
    below = np.full(len(test), 1 / symbols)  # nothing known: all are equally likely
    found = []
    for order in ORDERS:
        whole, asked = codes(train, order), codes(test, order)
        known, counts = np.unique(whole, return_counts=True)
        heads, totals = np.unique(whole // 256, return_counts=True)
        kinds = np.bincount(np.searchsorted(heads, known // 256), minlength=len(heads))  # distinct symbols after each
        seen, at = load_run(heads, asked // 256)
        there, place = load_run(known, asked)
        total, kind = np.where(seen, totals[at], 0), np.where(seen, kinds[at], 0)
        count = np.where(there, counts[place], 0)
        below = np.where(total + kind > 0, (count + kind * below) / np.maximum(total + kind, 1), below)
        found.append(float(-np.log(below[max(ORDERS) - 1 :]).mean()))
    return found


def codes(text: np.ndarray, length: int) -> np.ndarray:
    """The last `length` symbols (at most 256 kinds) up to each position as one whole number, its own as the lowest digit."""
    found = np.zeros(len(text), np.int64)
    for back in range(length):
        shifted = np.concatenate([np.zeros(back, np.int64), text[: len(text) - back].astype(np.int64)])
        found += shifted * 256**back
    return found


def load_run(table: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(whether it is there, where) of each code in a sorted table."""
    at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return table[at] == wanted, at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", help="folders of data/prepared, e.g. sotu-byte")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"))
    asked = parser.parse_args()
    for name in asked.texts:
        train, test = (prepare.load_tokens(asked.data / name, part) for part in ("train", "val"))
        symbols = prepare.about(asked.data / name)["vocab_size"]
        for label, part in (("all", train), (f"the first {SHORT:,}", train[:SHORT])):
            numbers = ", ".join(f"{value:.3f}" for value in cross_entropies(part, test, symbols))
            print(f"{name}, {label} of {len(train):,} symbols: {numbers}")


if __name__ == "__main__":
    main()
