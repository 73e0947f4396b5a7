"""Two SGD steps one after the other against one step along both gradients (LOMO, equations 1 to 6).

The paper drops the difference, a curvature term of second order in the rate. Here it is measured on a small Llama:
|sequential - joint| = alpha |g_j(theta - alpha g_i) - g_j(theta)| for two batches i and j, in fp64.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lowmem.data import prepare
from lowmem.data.token_windows import inputs_and_targets, train_windows
from lowmem.errors import Misuse, refuse_unknown
from lowmem.models import llama


def measure(config: dict, seed: int, root: Path) -> dict:
    """measure: {rates: [...], train_steps: SGD steps before (0: fresh weights), train_lr, batch, seq_len}.

    curve: {alpha, residual (norm), relative (to the norm of the joint step)} for each rate. metrics.final: slope of
    log residual by log alpha over the lower half of the rates (2 if the term is of second order), curvature = residual /
    alpha^2 at the smallest rate, relative at the largest, parameters, loss.
    """
    known = {"rates", "train_steps", "train_lr", "batch", "seq_len"}
    settings = {"train_steps": 0, "train_lr": 0.1, "batch": 8, "seq_len": 32, **config.get("measure", {})}
    refuse_unknown(settings, known, "measure")
    if len(settings.get("rates", [])) < 4:
        raise Misuse("task sequential_steps needs at least 4 measure.rates")
    tokens = prepare.load_tokens(prepare.ready(root, config["data"]), "train")
    model = llama.build(**{key: value for key, value in config["model"].items() if key != "name"}).double()
    parameters = list(model.parameters())

    def batch(index: int):
        windows = train_windows(tokens, settings["seq_len"], seed, index * settings["batch"], settings["batch"])
        return inputs_and_targets(windows, "cpu")

    def gradients(index: int) -> tuple[float, list[torch.Tensor]]:
        loss = model(*batch(index))
        return loss.item(), list(torch.autograd.grad(loss, parameters))

    for step in range(settings["train_steps"]):
        _, found = gradients(step + 2)
        move(parameters, found, -settings["train_lr"] / max(1.0, norm(found)))
    loss, first = gradients(0)
    _, second = gradients(1)
    joint = norm([a + b for a, b in zip(first, second, strict=True)])
    curve = []
    for alpha in sorted(settings["rates"]):
        move(parameters, first, -alpha)
        _, later = gradients(1)
        move(parameters, first, alpha)
        residual = alpha * norm([a - b for a, b in zip(later, second, strict=True)])
        curve.append({"alpha": alpha, "residual": residual, "relative": residual / (alpha * joint)})
    small = curve[: len(curve) // 2 + 1]
    x, y = (np.log([row[key] for row in small]) for key in ("alpha", "residual"))
    final = {
        "slope": float(np.polyfit(x, y, 1)[0]),
        "curvature": curve[0]["residual"] / curve[0]["alpha"] ** 2,
        "relative": curve[-1]["relative"],
        "parameters": sum(p.numel() for p in parameters),
        "loss": loss,
    }
    return {"metrics": {"final": final}, "curve": curve, "inputs": (prepare.ready(root, config["data"]) / "train.bin",)}


def norm(tensors: list[torch.Tensor]) -> float:
    """2-norm of all tensors together."""
    return torch.nn.utils.get_total_norm(tensors).item()


@torch.no_grad()
def move(parameters: list[nn.Parameter], directions: list[torch.Tensor], by: float) -> None:
    """Add `by` times the directions to the parameters, in place."""
    torch._foreach_add_(parameters, directions, alpha=by)
