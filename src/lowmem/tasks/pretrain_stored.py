"""Pre-training as the task pretrain has it, with weights in another dtype, and the norm of the embedding at the end."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.tasks import pretrain
from lowmem.training.task import Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """measure.weights: fp32 or bf16, how the weights are stored and used (buffers stay fp32); the rest as in pretrain.

    metrics.final.embedding_norm is the 2-norm of the token embedding after training. The loss is taken in fp32.
    """
    measure = dict(config.get("measure") or {})
    kind = measure.pop("weights", "fp32")
    if kind not in DTYPES:
        raise Misuse(f"measure.weights is {kind!r}; choose {' or '.join(DTYPES)}")
    task = pretrain.build({**config, "measure": measure}, seed, root, device)
    for p in task.model.parameters():
        p.data = p.data.to(DTYPES[kind])

    def loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, targets = batch
        return F.cross_entropy(model(tokens).float().flatten(0, 1), targets.flatten())

    def finish(model: torch.nn.Module) -> tuple[dict[str, float], dict | None]:
        found, arrays = task.finish(model) if task.finish else ({}, None)
        return {**found, "embedding_norm": float(model.tokens.weight.detach().float().norm())}, arrays

    return dataclasses.replace(task, loss=loss, finish=finish)
