"""CIFAR-10 as arrays, with its own split; from the hub, or from a folder with the authors' binary files."""

from pathlib import Path

import numpy as np

from lowmem.data import archives, image_files
from lowmem.data.sources import hub


def arrays(raw: Path) -> dict[str, np.ndarray]:
    """{train,test}_images: (50000 or 10000, 32, 32, 3) uint8; {train,test}_labels: (50000 or 10000,) uint8, 0 to 9."""
    read = from_hub if any(Path(raw).glob("*.jsonl.gz")) else binary
    found = {}
    for split in ("train", "test"):
        found[f"{split}_images"], found[f"{split}_labels"] = read(raw, split)
    return found


def binary(raw: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """One record is the label, and 32 x 32 pixels of red, then green, then blue; training has five files of them."""
    files = archives.read(raw, "*/data_batch_*.bin" if split == "train" else "*/test_batch.bin")
    rows = np.frombuffer(b"".join(files.values()), np.uint8).reshape(-1, 1 + 3072)
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0].copy()


def from_hub(raw: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    return image_files.hub_arrays(hub.documents(raw, split), "img", "label", raw, (32, 32, 3))
