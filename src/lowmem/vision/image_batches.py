"""Batches of prepared images: scaled, and augmented for training. B images of C channels, S x S pixels."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem.data import prepare
from lowmem.errors import Failed, Misuse, nearest

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
KEYS = {"augment", "pool", "pad_to", "crop", "scale"}
SCALES = ("normal", "signed")
AUGMENTATIONS = ("none", "flip", "crop", "zoom")
SAMPLE = 5000, 200_000_000  # most images and values from which mean and standard deviation are computed


@dataclass
class Pictures:
    """Prepared images and the preprocessing before a model sees them.

    augment: see augmented(). pool: average over pool x pool pixels. pad: black pixels on each side. crop: pixels per side
    that are cut out, None for all. brightest: the value scaled to 1 before normalising by mean and deviation.
    """

    arrays: dict[str, np.ndarray]
    device: str
    augment: str
    pool: int
    pad: int
    crop: int | None
    brightest: int
    mean: float
    deviation: float
    inputs: tuple[Path, ...]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.arrays["train_labels"].max()) + 1

    @property
    def shape(self) -> dict[str, int]:
        """{n_channel, image_size} of the images in a batch."""
        images = self.arrays["train_images"]
        size = images.shape[1] // self.pool + 2 * self.pad
        return {"n_channel": 1 if images.ndim == 3 else images.shape[3], "image_size": self.crop or size}

    def train(self, seed: int, index: int, size: int) -> tuple[Tensor, Tensor]:
        """Batch number `index` of this size, (B, C, S, S) and labels (B,); every epoch is a new order of all images."""
        numbers = np.arange(index * size, (index + 1) * size)
        count = len(self.arrays["train_labels"])
        epochs = numbers // count
        chosen = [order(count, seed, epoch)[numbers[epochs == epoch] % count] for epoch in np.unique(epochs)]
        images, labels = self.take("train", np.concatenate(chosen))
        return augmented(images, self.augment, self.crop, np.random.default_rng([seed, 1, index])), labels

    def test(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Images first ... first + size - 1 of the test set, not augmented."""
        images, labels = self.take("test", np.arange(first, min(first + size, len(self.arrays["test_labels"]))))
        return augmented(images, "none", self.crop, None), labels

    def take(self, part: str, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """These images of a part, scaled and padded."""
        images = torch.from_numpy(self.arrays[f"{part}_images"][chosen]).to(self.device)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        images = images.float() / self.brightest
        images = F.avg_pool2d(images, self.pool) if self.pool > 1 else images
        images = F.pad(images, [self.pad] * 4).sub(self.mean).div(self.deviation)
        return images, torch.from_numpy(self.arrays[f"{part}_labels"][chosen].astype(np.int64)).to(self.device)


def of_task(root: Path, config: dict, device: str) -> Pictures:
    """The images of a configuration, preprocessed as its `measure` says: the settings of load, and `scale`."""
    changes = config.get("measure") or {}
    for key in changes.keys() - KEYS:
        raise Misuse(f"measure: task {config.get('task')} has no key {key!r}{nearest(key, KEYS)}")
    if changes.get("scale", "normal") not in SCALES:
        raise Misuse(f"measure.scale: unknown {changes['scale']!r}; choose from: {', '.join(SCALES)}")
    return load(root, config["data"], device, changes, changes.get("scale", "normal"))


def load(root: Path, data: dict, device: str, settings: dict, scale: str = "normal") -> Pictures:
    """The images of config["data"]. scale: "normal" (mean 0, standard deviation 1) or "signed" (-1 to 1).

    settings, all optional: augment, pool, crop (see Pictures), and pad_to: pixels per side after padding with black.
    """
    folder = prepare.ready(root, data)
    arrays = prepare.load_arrays(folder)
    check(arrays, folder)
    augment, pool, crop = settings.get("augment", "none"), settings.get("pool", 1), settings.get("crop")
    side = arrays["train_images"].shape[1]
    added = (settings.get("pad_to") or side // pool) - side // pool
    if augment not in AUGMENTATIONS:
        raise Misuse(f"measure.augment: unknown {augment!r}; choose from: {', '.join(AUGMENTATIONS)}")
    if side % pool or added % 2 or added < 0 or (crop or 1) > side // pool + added:
        asked = f"pool {pool}, pad_to {settings.get('pad_to')} and crop {crop}"
        raise Misuse(f"{folder.name} has {side} pixels per side, which {asked} do not fit")
    images = arrays["train_images"]
    sample = images[: min(SAMPLE[0], max(1, SAMPLE[1] // images[0].size))]
    brightest = 255 if sample.max() > 16 else 16  # the digits have 17 grey levels
    mean, deviation = (0.5, 0.5) if scale == "signed" else (sample.mean() / brightest, sample.std() / brightest)
    inputs = tuple(folder / f"{name}.npy" for name in ARRAYS)
    return Pictures(arrays, device, augment, pool, added // 2, crop, brightest, float(mean), float(deviation), inputs)


def check(arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Misuse or Failed, with what is wrong, unless the arrays are square images with a label each."""
    lacking = [name for name in ARRAYS if name not in arrays]
    if lacking:
        raise Misuse(f"{folder.name} holds no images ({', '.join(lacking)} missing); choose another dataset")
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if len(images) != len(labels) or not len(images):
            raise Failed(f"{folder}: {len(images)} images and {len(labels)} labels in {part}; prepare it again")
        if images.ndim not in (3, 4) or images.shape[1] != images.shape[2] or images.dtype != np.uint8:
            raise Failed(f"{folder}: {part} images have shape {images.shape} and type {images.dtype}, not square uint8")


@functools.lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Order in which an epoch goes through all images."""
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def augmented(pictures: Tensor, how: str, crop: int | None, generator: np.random.Generator | None) -> Tensor:
    """(B, C, S, S) -> (B, C, crop or S, crop or S).

    "flip": half of them mirrored. "crop": also a random window, after padding each side by an eighth with black
    unless crop is set. "zoom": also a window of 25 to 100 % of the area, scaled up (aspect ratio kept).
    """
    size = crop or pictures.shape[-1]
    if how == "none" or generator is None:
        start = (pictures.shape[-1] - size) // 2
        return pictures[..., start : start + size, start : start + size]
    count = len(pictures)
    mirrored = torch.from_numpy(generator.random(count) < 0.5).to(pictures.device)
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
    if how == "zoom":
        length = np.sqrt(generator.uniform(0.25, 1, count))  # of the window, as a share of the side
        place = generator.uniform(-1, 1, (count, 2)) * (1 - length)[:, None]
        matrix = np.zeros((count, 2, 3), dtype=np.float32)
        matrix[:, 0, 0] = matrix[:, 1, 1] = length
        matrix[:, :, 2] = place
        shape = (count, pictures.shape[1], size, size)
        grid = F.affine_grid(torch.from_numpy(matrix).to(pictures.device), shape, align_corners=False)
        return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    if how == "crop":
        edge = 0 if crop else size // 8
        pictures = F.pad(pictures, [edge] * 4, value=float(pictures.min()))
    room = pictures.shape[-1] - size
    top, left = (torch.from_numpy(generator.integers(0, room + 1, count)).to(pictures.device) for _ in range(2))
    along = torch.arange(size, device=pictures.device)
    which = torch.arange(count, device=pictures.device)[:, None, None]
    rows, columns = (top[:, None] + along)[:, :, None], (left[:, None] + along)[:, None, :]
    return pictures.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)
