"""The 8 x 8 digits as arrays; the last fifth of the table is the test part."""

from pathlib import Path

import numpy as np

from lowmem.data import archives

TEST = 360  # rows of 1797


def arrays(raw: Path) -> dict[str, np.ndarray]:
    """{train,test}_images: (1437 or 360, 8, 8) uint8, 0 to 16; {train,test}_labels: (1437 or 360,) uint8, 0 to 9."""
    [packed] = archives.read(raw, "*/digits.csv.gz").values()
    lines = archives.unpacked(packed, "digits.csv.gz").decode("ascii").split()
    table = np.array([[float(value) for value in line.split(",")] for line in lines]).astype(np.uint8)  # (1797, 65)
    images, labels = table[:, :64].reshape(-1, 8, 8), table[:, 64]
    return {
        "train_images": images[:-TEST],
        "train_labels": labels[:-TEST],
        "test_images": images[-TEST:],
        "test_labels": labels[-TEST:],
    }
