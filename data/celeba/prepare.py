"""CelebA faces as arrays of 64 x 64, as diffusion models use them: no classes, so every label is 0."""

from pathlib import Path

import numpy as np

from lowmem.data import image_files
from lowmem.data.sources import hub

SIZE = 64  # the shorter side is scaled to it when it is fetched (sources.yaml: image_size), the middle is cut out
TEST = 4000  # the last pictures are held out


def arrays(raw: Path) -> dict[str, np.ndarray]:
    """{train,test}_images: (N, 64, 64, 3) uint8; {train,test}_labels: zeros. From the hub, or a folder train/faces/."""
    if any(Path(raw).glob("*.jsonl.gz")):
        found = [picture for picture, _ in image_files.from_hub(hub.documents(raw, "train"), "image", None, raw)]
    else:
        files = (path for path, _ in image_files.from_folders(raw, "train"))
        found = [
            np.asarray(image_files.fitted(image_files.decoded(path.read_bytes(), str(path)), SIZE)) for path in files
        ]
    held_out = min(TEST, len(found) // 10)
    pictures, zeros = np.array(found), np.zeros(len(found), dtype=np.uint8)
    train, test = slice(0, len(found) - held_out), slice(len(found) - held_out, None)
    return {
        **{"train_images": pictures[train], "train_labels": zeros[train]},
        **{"test_images": pictures[test], "test_labels": zeros[test]},
    }
