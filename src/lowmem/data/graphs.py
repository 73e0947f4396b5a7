"""Graphs as arrays: what data/<graph>/prepare.py writes and task nodes reads, and the files of Planetoid.

features (N, F) of any numeric type; edges (E, 2) int32, each undirected edge once, no loops; labels (N,) int64;
train, val, test: numbers of the nodes of each part.
"""

import collections
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lowmem.data import archives, safe_pickle
from lowmem.errors import Failed

PARTS = ("train", "val", "test")


def largest_part(nodes: Iterable, edges: Iterable[tuple]) -> set:
    """Nodes of the largest connected part; of equally large ones that of the smallest node."""
    neighbours = collections.defaultdict(list)
    for a, b in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    seen, best = set(), []
    for start in sorted(nodes):
        if start in seen:
            continue
        part = [start]
        seen.add(start)
        for node in part:  # grows while it is read
            new = [other for other in neighbours[node] if other not in seen]
            seen.update(new)
            part += dict.fromkeys(new)
        best = max(best, part, key=len)
    return set(best)


def split_by_class(labels: np.ndarray, per_class: int, val: int, test: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Planetoid's kind of split: `per_class` training nodes of each class, then val and test nodes from the others."""
    order = np.random.default_rng(seed).permutation(len(labels))
    train = np.sort(np.concatenate([order[labels[order] == c][:per_class] for c in np.unique(labels)]))
    rest = order[~np.isin(order, train)]
    return {"train": train, "val": np.sort(rest[:val]), "test": np.sort(rest[val : val + test])}


def undirected(pairs: np.ndarray) -> np.ndarray:
    """(E, 2) int32: every pair once, as (smaller, larger), sorted; loops are dropped."""
    pairs = np.sort(np.asarray(pairs).reshape(-1, 2), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).astype(np.int32)


def isolated(edges: np.ndarray, nodes: int) -> int:
    """Number of nodes without an edge."""
    return nodes - len(np.unique(edges))


def check(arrays: dict[str, np.ndarray], place: Path) -> None:
    """Failed, with what is wrong, unless the arrays are one graph."""
    lacking = [name for name in ("features", "edges", "labels", *PARTS) if name not in arrays]
    if lacking:
        raise Failed(f"{place} is not a graph: {', '.join(lacking)} missing; prepare it again")
    nodes = len(arrays["labels"])
    problems = {
        "features and labels speak of different numbers of nodes": len(arrays["features"]) != nodes,
        "edges name nodes that do not exist": len(arrays["edges"]) and not in_range(arrays["edges"], nodes),
        "a part names nodes that do not exist": not all(in_range(arrays[part], nodes) for part in PARTS),
        "features are not finite": not np.isfinite(arrays["features"]).all(),
        "a part is empty": not all(len(arrays[part]) for part in PARTS),
        "parts overlap": len(np.unique(np.concatenate([arrays[part] for part in PARTS])))
        != sum(len(arrays[part]) for part in PARTS),
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise Failed(f"{place}: {found[0]}; fix the files and prepare it again")


def in_range(numbers: np.ndarray, count: int) -> bool:
    """Whether all numbers are indices below count."""
    return len(numbers) == 0 or (int(np.min(numbers)) >= 0 and int(np.max(numbers)) < count)


def planetoid(raw: Path, name: str) -> dict[str, np.ndarray]:
    """Cora, CiteSeer or PubMed (Yang et al., arXiv 1603.08861) with the public split: 20 training nodes of each class,
    the next 500 for validation, the listed 1,000 for testing.

    Nodes that the test list leaves out (CiteSeer has 15) get features and label 0; no part holds them.
    """
    part = {
        key: safe_pickle.load(*one(raw, f"*ind.{name}.{key}"))
        for key in ("x", "tx", "allx", "y", "ty", "ally", "graph")
    }
    text, place = one(raw, f"*ind.{name}.test.index")
    try:
        tests = np.array([int(line) for line in text.split()])
        first, count = len(part["ally"]), max(tests.max() + 1, len(part["graph"]))
        features = np.zeros((count, part["allx"].shape[1]), dtype=np.float32)
        labels = np.zeros((count, part["ally"].shape[1]))
        features[:first], labels[:first] = part["allx"].dense(), part["ally"]
        features[tests], labels[tests] = part["tx"].dense(), part["ty"]
        pairs = [(a, b) for a, others in part["graph"].items() for b in others]
    except (ValueError, AttributeError, IndexError, TypeError) as error:
        raise Failed(f"{place} and its neighbours are not a Planetoid graph: {error}; fetch it again") from error
    train = np.arange(len(part["y"]))
    return {
        "features": features,
        "edges": undirected(np.array(pairs)),
        "labels": labels.argmax(axis=1),
        **{"train": train, "val": np.arange(len(train), len(train) + 500), "test": np.sort(tests)},
    }


def one(raw: Path, pattern: str) -> tuple[bytes, str]:
    """(content, name) of the one file that matches."""
    found = archives.read(raw, pattern)
    if len(found) != 1:
        raise Failed(f"{len(found)} files in {raw} match {pattern!r}, one is needed: {', '.join(found)}")
    [(name, content)] = found.items()
    return content, re.sub(r".*/", "", name)
