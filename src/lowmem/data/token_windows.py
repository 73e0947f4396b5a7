"""Windows of one long token file: those of training by a counter, those of validation from the start."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowmem.errors import Misuse


def train_windows(tokens: np.ndarray, length: int, seed: int, first: int, count: int) -> np.ndarray:
    """Windows number first ... first + count - 1 of the run with this seed, (count, length + 1) int64.

    Window s starts where the counter-based generator Philox says at counter s, so neither the micro-batch size nor the
    optimizer changes the data order.
    """
    raw = np.random.Philox(key=seed, counter=first).random_raw(4 * count)[::4]  # one counter yields four words
    return windows_at(tokens, (raw % np.uint64(len(tokens) - length)).astype(np.int64), length)


def windows_at(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """The windows that begin at `starts` (windows,), (windows, length + 1) int64."""
    return tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)


def val_windows(tokens: np.ndarray, length: int, count: int, folder: Path) -> np.ndarray:
    """The first `count` windows, (count, length + 1); targets of neighbours do not overlap."""
    if len(tokens) < count * length + 1:
        raise Misuse(
            f"{folder}/val.bin holds {len(tokens)} tokens, {count} validation windows of {length} need "
            f"{count * length + 1}; lower train.eval_batches"
        )
    return windows_at(tokens, np.arange(count) * length, length)


def inputs_and_targets(windows: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    """(B, T + 1) -> tokens (B, T) and the tokens that follow them (B, T), on the device."""
    both = torch.from_numpy(windows).to(device, non_blocking=True)
    return both[:, :-1], both[:, 1:]
