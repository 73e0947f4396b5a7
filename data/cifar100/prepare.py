"""CIFAR-100 as arrays, with its own split and its 100 fine classes; from the hub, or from a
folder with the authors' binary files."""

from pathlib import Path

import numpy as np

from lowmem.data import archives, image_files
from lowmem.data.sources import hub


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
    return image_files.hub_arrays(hub.documents(raw, split), "img", "fine_label", raw, (32, 32, 3))
