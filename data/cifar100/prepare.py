"""CIFAR-100 as arrays, with its own split and its 100 fine classes; from the hub, or from a
folder with the authors' binary files."""

import base64
from pathlib import Path

import numpy as np

from lowmem import archives
from lowmem.errors import Failed
from lowmem.sources import hub

SHAPE = (32, 32, 3)


def arrays(raw: Path) -> dict[str, np.ndarray]:
    """{train,test}_images: (50000 or 10000, 32, 32, 3) uint8; {train,test}_labels: (50000 or 10000,) uint8, 0 to 99."""
    read = from_hub if any(Path(raw).glob("*.jsonl.gz")) else binary
    found = {}
    for split in ("train", "test"):
        found[f"{split}_images"], found[f"{split}_labels"] = read(raw, split)
    return found


def binary(raw: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """One record is the coarse label, the fine label, and 32 x 32 pixels of red, then green, then blue."""
    [data] = archives.read(raw, f"*/{split}.bin").values()  # from the archive, or unpacked in a folder of the user
    rows = np.frombuffer(data, np.uint8).reshape(-1, 2 + 3072)
    return rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 1].copy()


def from_hub(raw: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows as sources/hub.py keeps them: {img: {shape, pixels in base64}, fine_label}."""
    pictures, targets = [], []
    for row in hub.documents(raw, split):
        if tuple(row["img"]["shape"]) != SHAPE:
            raise Failed(f"an image of {raw} has shape {row['img']['shape']}, not {list(SHAPE)}; fetch it again")
        pictures.append(np.frombuffer(base64.b64decode(row["img"]["pixels"]), np.uint8))
        targets.append(row["fine_label"])
    return np.array(pictures).reshape(-1, *SHAPE), np.array(targets, dtype=np.uint8)
