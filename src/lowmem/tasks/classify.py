"""Image classification, evaluated on the dataset's own test set."""

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

    train.eval_batches: how many batches of the test set are evaluated (default: all). val_accuracy is a fraction.
    """
    if "data" not in config or "model" not in config:
        raise Misuse("task classify needs data and model in its configuration")
    train = config["train"]
    micro = micro_batch(train)
    data = image_batches.of_task(root, config, device)
    with torch.device(device):
        model = models.build(config["model"], **data.shape, n_output=data.classes)
    layout = torch.channels_last if train.get("precision") == "bf16" else torch.contiguous_format
    model = model.to(memory_format=layout)  # bf16 convolutions are several times faster this way, on CPUs and GPUs

    def batch(index: int) -> tuple[Tensor, Tensor]:
        images, labels = data.train(seed, index, micro)
        return images.contiguous(memory_format=layout), labels

    def loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(*batch)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        total, right, seen, known = 0.0, 0, 0, len(data.arrays["test_labels"])
        for first in range(0, min(known, train.get("eval_batches", known) * micro), micro):
            images, labels = data.test(first, micro)
            logits = model(images.contiguous(memory_format=layout)).float()
            total += F.cross_entropy(logits, labels, reduction="sum").item()
            right += (logits.argmax(1) == labels).sum().item()
            seen += len(labels)
        return {"val_loss": total / seen, "val_accuracy": right / seen}

    return Task(model, batch, loss, evaluate, units=micro, unit="image", inputs=data.inputs)
