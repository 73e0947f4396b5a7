"""Learn to reconstruct images from small latents: mean squared error per pixel on the test set."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem import models
from lowmem.errors import Misuse
from lowmem.training.task import Task, micro_batch
from lowmem.vision import image_batches


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """Task from config keys data, model, train and measure (the preprocessing, see image_batches.py).

    train.eval_batches: how many batches of the test set are evaluated (default: all).
    """
    if "data" not in config or "model" not in config:
        raise Misuse("task autoencode needs data and model in its configuration")
    train = config["train"]
    micro = micro_batch(train)
    data = image_batches.of_task(root, config, device)
    with torch.device(device):
        model = models.build(config["model"], **data.shape)

    def loss(model: torch.nn.Module, batch: Tensor) -> Tensor:
        return F.mse_loss(model(batch), batch)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        known = len(data.arrays["test_labels"])
        firsts = range(0, min(known, train.get("eval_batches", known) * micro), micro)
        parts = [data.test(first, micro)[0] for first in firsts]
        total = sum(F.mse_loss(model(part).float(), part).item() * len(part) for part in parts)
        return {"val_loss": total / sum(map(len, parts))}

    def batch(index: int) -> Tensor:
        return data.train(seed, index, micro)[0]

    return Task(model, batch, loss, evaluate, units=micro, unit="image", inputs=data.inputs)
