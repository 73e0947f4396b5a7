"""Image files as arrays: what data/<dataset>/prepare.py reads them with.

Prepared arrays: {train,test}_images (N, S, S[, C]) uint8 and {train,test}_labels (N,) of an integer type.
"""

import base64
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lowmem.errors import Failed, one_line

LONGEST = 500  # largest aspect ratio; as the shorter side may be scaled up, more would take gigabytes
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")


def decoded(content: bytes, name: str):
    """An image file as an RGB image of PIL; Failed, with its name, when it is damaged."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # for decompression bombs
            image = Image.open(io.BytesIO(content))
        if max(image.size) > LONGEST * min(image.size):
            raise ValueError(f"{image.width} x {image.height} is a line, not an image")
        return image.convert("RGB")
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ...
        what = one_line(error, 300)
        raise Failed(f"{name} is not a readable image ({what}); replace or remove it") from error


def fitted(picture, size: int):
    """PIL's image with its shorter side scaled to `size` and its middle cut out, (size, size)."""
    scale = size / min(picture.size)
    scaled = picture.resize([max(size, round(length * scale)) for length in picture.size])
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    return scaled.crop((left, top, left + size, top + size))


def from_hub(rows: Iterator[dict], image: str, label: str | None, raw: Path) -> Iterator[tuple[np.ndarray, int]]:
    """(image (H, W, C) uint8, label) of rows as sources/hub.py keeps them; label 0 without a label column."""
    for number, row in enumerate(rows):
        kept = row[image]
        pixels = np.frombuffer(base64.b64decode(kept["pixels"]), np.uint8)
        if pixels.size != np.prod(kept["shape"]):
            raise Failed(f"image {number} of {raw} has {pixels.size} values, not {kept['shape']}; fetch it again")
        yield pixels.reshape(kept["shape"]), int(row[label]) if label else 0


def hub_arrays(rows: Iterator[dict], image: str, label: str, raw: Path, shape: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, *shape) and labels (N,), both uint8, of rows as sources/hub.py keeps them; Failed for another shape."""
    images, labels = [], []
    for pixels, number in from_hub(rows, image, label, raw):
        if pixels.shape != shape:
            raise Failed(f"an image of {raw} has shape {list(pixels.shape)}, not {list(shape)}; fetch it again")
        images.append(pixels)
        labels.append(number)
    return np.array(images), np.array(labels, dtype=np.uint8)


def from_folders(raw: Path, split: str) -> Iterator[tuple[Path, int]]:
    """(file, label) of <split>/<class>/<image>; classes are numbered alphabetically. Failed when there are none."""
    folder = Path(raw) / split
    classes = sorted(path for path in folder.glob("*") if path.is_dir())
    count = 0
    for label, place in enumerate(classes):
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in ENDINGS:
                count += 1
                yield path, label
    if not count:
        raise Failed(f"no images in {folder}; it needs one folder of images per class")


class Stacked(io.RawIOBase):
    """Arrays of equal shape as the bytes of one .npy file, generated while it is read: they need not fit into memory."""

    def __init__(self, rows: Iterator[np.ndarray], count: int, shape: tuple[int, ...], dtype: str = "u1"):
        self.rows, self.left, self.shape, self.dtype = iter(rows), count, tuple(shape), np.dtype(dtype)
        header = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(header, {**described, "shape": (count, *self.shape)})
        self.waiting = header.getvalue()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not self.waiting and self.left:
            row = np.asarray(next(self.rows), dtype=self.dtype)
            if row.shape != self.shape:
                raise Failed(f"an image has shape {list(row.shape)}, not {list(self.shape)}; prepare it again")
            self.left -= 1
            self.waiting = row.tobytes()
        part, self.waiting = self.waiting[: len(buffer)], self.waiting[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
