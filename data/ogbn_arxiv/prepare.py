"""ogbn-arxiv, citations between computer-science papers, with its split by year; from the authors' zip of csv files."""

from pathlib import Path

import numpy as np

from lowmem.data import archives, graphs


def arrays(raw: Path) -> dict[str, np.ndarray]:
    """features (169343, 128) float32, edges, labels, and the nodes of train, val and test (see lowmem.data.graphs)."""
    return {
        "features": table(raw, "*/raw/node-feat.csv.gz", np.float32),
        "edges": graphs.undirected(table(raw, "*/raw/edge.csv.gz", np.int64)),
        "labels": table(raw, "*/raw/node-label.csv.gz", np.int64).reshape(-1),
        **{ours: np.sort(table(raw, f"*/split/time/{theirs}.csv.gz", np.int64).reshape(-1)) for ours, theirs in PARTS},
    }


PARTS = (("train", "train"), ("val", "valid"), ("test", "test"))


def table(raw: Path, pattern: str, dtype: type) -> np.ndarray:
    """A csv file without a header as a two-dimensional array."""
    [packed] = archives.read(raw, pattern).values()
    lines = archives.unpacked(packed, pattern).decode("ascii").splitlines()
    return np.array([line.split(",") for line in lines], dtype=dtype)
