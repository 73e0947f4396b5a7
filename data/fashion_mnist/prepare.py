"""Fashion-MNIST as arrays, with its own split."""

from pathlib import Path

import numpy as np

from lowmem.data import archives


def arrays(raw: Path) -> dict[str, np.ndarray]:
    """{train,test}_images: (60000 or 10000, 28, 28) uint8; {train,test}_labels: (60000 or 10000,) uint8, 0 to 9."""
    found = {}
    for ours, theirs in (("train", "train"), ("test", "t10k")):
        found[f"{ours}_images"] = idx(raw, f"*/{theirs}-images-idx3-ubyte.gz")
        found[f"{ours}_labels"] = idx(raw, f"*/{theirs}-labels-idx1-ubyte.gz")
    return found


def idx(raw: Path, pattern: str) -> np.ndarray:
    """An idx file: two zero bytes, type (8 = uint8), number of dimensions, their big-endian sizes, the values."""
    [packed] = archives.read(raw, pattern).values()
    data = archives.unpacked(packed, pattern)
    sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(*sizes)
