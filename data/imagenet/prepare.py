"""ImageNet (ILSVRC 2012) as two files of pictures of 256 x 256; from the hub, or from a folder of the user.

A folder holds train/<class>/ and val/<class>/ with a thousand classes each, as everyone unpacks it. The validation part
is what this package calls test. Pictures are written one by one: together they are larger than most memories.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lowmem.data import image_files
from lowmem.data.sources import hub

SIZE = 256  # pixels per side: the shorter side is scaled to it and the middle is cut out


def files(raw: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (file name, stream): {train,test}_images.npy, (N, 256, 256, 3) uint8, and {train,test}_labels.npy, (N,)."""
    read = from_hub if any(Path(raw).glob("*.jsonl.gz")) else from_folder
    for split in ("train", "test"):
        labels = [label for label in read(raw, split, pixels=False)]
        yield f"{split}_labels.npy", image_files.Stacked((np.array(label) for label in labels), len(labels), (), "i2")
        yield f"{split}_images.npy", image_files.Stacked(read(raw, split), len(labels), (SIZE, SIZE, 3))


def from_folder(raw: Path, split: str, pixels: bool = True) -> Iterator:
    """Pictures of a split, or only their labels; a damaged one is an error that names it."""
    for path, label in image_files.from_folders(raw, {"test": "val"}.get(split, split)):
        yield (
            np.asarray(image_files.fitted(image_files.decoded(path.read_bytes(), str(path)), SIZE)) if pixels else label
        )


def from_hub(raw: Path, split: str, pixels: bool = True) -> Iterator:
    for picture, label in image_files.from_hub(hub.documents(raw, split), "image", "label", raw):
        yield picture if pixels else label
