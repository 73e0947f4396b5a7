"""What the training loop needs to know about a task; build(config, seed, root, device) in tasks/<name>.py makes one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn


@dataclass
class Task:
    """model: fresh, on the device. batch(i): micro-batch i, a pure function of configuration, seed and i, so that no
    optimizer and no interruption changes the data order. loss(model, batch): scalar, the mean over the micro-batch.
    evaluate(model): named numbers on a fixed validation set, at least val_loss. units: tokens (or what `unit` says)
    in one micro-batch. inputs: files whose content decides the result (their hashes enter the record).
    finish(trained model): further final numbers, and arrays to keep beside the record.
    """

    model: nn.Module
    batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    evaluate: Callable[[nn.Module], dict[str, float]]
    units: int
    unit: str = "token"
    inputs: tuple[Path, ...] = ()
    finish: Callable[[nn.Module], tuple[dict, dict | None]] | None = None


def micro_batch(train: dict) -> int:
    """Examples in one micro-batch: the whole batch, where the configuration does not cut it."""
    return train.get("micro_batch_size") or train["batch_size"]
