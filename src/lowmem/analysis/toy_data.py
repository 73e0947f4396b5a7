"""Small data for models whose Hessian is computed exactly: images of a few classes, or text of a few symbols."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowmem.data import prepare
from lowmem.data.token_windows import train_windows
from lowmem.errors import Misuse

SAMPLE = 1_000_000_000  # number of the batch that the Hessian is taken on: far behind every training batch


@dataclass
class ToyData:
    """batch(step, size) -> inputs and targets, a pure function of the run's seed; sample: those of the Hessian.

    shape: what the model must be told, {n_input, n_output} for images, {} for text. inputs: files that decide it.
    """

    batch: Callable[[int, int], tuple[Tensor, Tensor]]
    sample: tuple[Tensor, Tensor]
    shape: dict
    inputs: tuple[Path, ...]


def load(config: dict, seed: int, root: Path) -> ToyData:
    """Data of config["data"]: text where it names a tokenizer, else images. measure: {examples, classes?, pool?}."""
    folder = prepare.ready(root, config["data"])
    return (text if config["data"].get("tokenizer") else images)(config, seed, folder)


def images(config: dict, seed: int, folder: Path) -> ToyData:
    """measure.classes of the dataset's classes, drawn by the seed (fewer are a subset of more); brightest pixel 1.

    measure.pool: images (N, H, W[, channels]) are averaged over pool x pool pixels. measure.examples: how many
    training images the Hessian's loss is the mean over.
    """
    arrays, settings = prepare.load_arrays(folder), config["measure"]
    pixels, targets = arrays["train_images"], np.asarray(arrays["train_labels"]).astype(np.int64)
    known, wanted, brightest = int(targets.max()) + 1, settings.get("classes"), float(pixels.max())
    if wanted is not None and not 2 <= wanted <= known:
        raise Misuse(f"measure.classes is {wanted}, and {folder.name} has {known}; choose 2 to {known}")
    generator = np.random.default_rng(seed)
    classes = generator.permutation(known)[:wanted]  # None keeps all
    label_of = np.full(known, -1)
    label_of[classes] = np.arange(len(classes))
    chosen = generator.permutation(np.flatnonzero(label_of[targets] >= 0))
    sample = settings["examples"]
    if len(chosen) < sample:
        raise Misuse(f"measure.examples is {sample}, and {folder.name} has {len(chosen)} of these classes; lower it")

    def take(indices: np.ndarray) -> tuple[Tensor, Tensor]:
        indices = np.sort(indices)  # in order of the file
        inputs = pooled(pixels[indices], settings.get("pool", 1)) / brightest
        return torch.from_numpy(inputs), torch.from_numpy(label_of[targets[indices]])

    def batch(step: int, size: int) -> tuple[Tensor, Tensor]:
        return take(np.random.default_rng([seed, step]).choice(chosen, size))

    hessian_batch = take(chosen[:sample])
    shape = {"n_input": hessian_batch[0].shape[1], "n_output": len(classes)}
    return ToyData(batch, hessian_batch, shape, (folder / "train_images.npy", folder / "train_labels.npy"))


def pooled(pictures: np.ndarray, pool: int) -> np.ndarray:
    """(N, H, W, ...) -> (N, features) float64, averaged over pool x pool pixels."""
    count, height, width, *channels = pictures.shape
    if height % pool or width % pool:
        raise Misuse(f"measure.pool {pool} does not divide images of {height} x {width}; choose a divisor")
    summed = np.zeros((count, height // pool, width // pool, *channels))
    for row in range(pool):
        for column in range(pool):
            summed += pictures[:, row::pool, column::pool]
    return summed.reshape(count, -1) / pool**2


def text(config: dict, seed: int, folder: Path) -> ToyData:
    """Windows of train.seq_len tokens; with a vocabulary smaller than the data's, tokens are merged into groups."""
    length, vocabulary = config["train"]["seq_len"], config["model"]["vocab_size"]
    tokens = prepare.load_tokens(folder, "train")
    merged = merge_tokens(tokens, vocabulary)

    def take(first: int, count: int) -> tuple[Tensor, Tensor]:
        windows = torch.from_numpy(merged[train_windows(tokens, length, seed, first, count)])  # (count, T + 1)
        return windows[:, :-1], windows[:, 1:]

    def batch(step: int, size: int) -> tuple[Tensor, Tensor]:
        return take(step * size, size)

    return ToyData(batch, take(SAMPLE, config["measure"]["examples"]), {}, (folder / "train.bin",))


def merge_tokens(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """Group of each token id, (ids,): `vocabulary` groups of about equal frequency, so that none is rare.

    Ids are dealt in order of frequency, each to the group that has least so far. Text keeps its statistics: which
    group follows which is still decided by real prose. Ids keep themselves where the vocabulary is large enough.
    """
    counts = np.bincount(tokens[:10_000_000])
    if len(counts) <= vocabulary:
        return np.arange(vocabulary)
    group, filled = np.zeros(np.iinfo(tokens.dtype).max + 1, dtype=np.int64), np.zeros(vocabulary)
    for token in np.argsort(-counts, kind="stable"):
        group[token] = filled.argmin()
        filled[group[token]] += counts[token]
    return group
