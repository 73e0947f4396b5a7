"""Language-model pre-training: predict the next token of windows drawn from one long token file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem import models
from lowmem.data import prepare
from lowmem.data.token_windows import inputs_and_targets, train_windows, val_windows, windows_at
from lowmem.errors import Misuse, refuse_unknown
from lowmem.files import read_yaml
from lowmem.training.task import Task, micro_batch

EVAL_WINDOWS = 64  # windows in one forward pass of an evaluation: enough for full speed on a core, little memory


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """Task from config keys data, model and train; the model's weights come from the global generator.

    train.eval_windows: that many windows, spread evenly over the held-out text, are evaluated (else eval_batches
    micro-batches from its beginning). measure.held_out: "whole" measures the final weights on every window of the held-out
    text: its mean becomes metrics.final.val_loss, the windows' own losses the array val_window_losses.
    measure.starts: a file below the root with places of the validation tokens; the final weights' mean loss over the
    windows that start there becomes metrics.final.starts_loss.
    """
    train = config["train"]
    if "seq_len" not in train or "data" not in config or "model" not in config:
        raise Misuse("task pretrain needs data, model and train.seq_len in its configuration")
    length, micro = train["seq_len"], micro_batch(train)
    folder = prepare.ready(root, config["data"])
    train_tokens, val_tokens = (prepare.load_tokens(folder, split) for split in ("train", "val"))
    with torch.device(device):
        model = models.build(config["model"])
    check_fit(model, folder, train_tokens, length)
    measured = config.get("measure") or {}
    starts = read_starts(root, measured, len(val_tokens) - length - 1)
    whole = (len(val_tokens) - 1) // length  # windows in the held-out text
    if train.get("eval_windows"):
        windows = spread_windows(val_tokens, length, train["eval_windows"], folder)  # (windows, T + 1)
    else:
        windows = val_windows(val_tokens, length, train.get("eval_batches", 1) * micro, folder)

    def batch(index: int) -> tuple[Tensor, Tensor]:
        return inputs_and_targets(train_windows(train_tokens, length, seed, index * micro, micro), device)

    def loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(*batch)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        if train.get("eval_windows"):
            return {"val_loss": float(window_losses(model, windows, device).mean())}
        parts = np.split(windows, len(windows) // micro)
        total = sum(loss(model, inputs_and_targets(part, device)).item() for part in parts)
        return {"val_loss": total / len(parts)}  # all batches are equally large, so the mean of means is the mean

    def finish(model: torch.nn.Module) -> tuple[dict[str, float], dict | None]:
        found, arrays = {}, None
        if measured.get("held_out"):
            losses = window_losses(model, spread_windows(val_tokens, length, whole, folder), device)
            found["val_loss"] = float(losses.mean())
            arrays = {
                "val_window_losses": losses.astype(np.float16)
            }  # rounds by 1e-3 at most, the mean of thousands by 1e-5
        if len(starts):
            found["starts_loss"] = float(window_losses(model, windows_at(val_tokens, starts, length), device, 1).mean())
        return found, arrays

    inputs = [folder / "train.bin", folder / "val.bin"]
    if len(starts):
        inputs.append(root / measured["starts"])
    last = finish if len(starts) or measured.get("held_out") else None
    return Task(model, batch, loss, evaluate, units=micro * length, inputs=tuple(inputs), finish=last)


def read_starts(root: Path, measure: dict, last: int) -> np.ndarray:
    """Places of measure.starts, (windows,) int64, none without it; Misuse unless all are places from 0 to `last`."""
    refuse_unknown(measure, {"starts", "held_out"}, "measure")
    if measure.get("held_out") not in (None, "whole"):
        raise Misuse(f"measure.held_out: {measure['held_out']!r}; write whole, or leave it out")
    if measure.get("starts") is None:
        return np.zeros(0, dtype=np.int64)
    path = root / measure["starts"]
    if not path.is_file():
        raise Misuse(f"measure.starts: {path} does not exist; name a file of data/published")
    found = np.asarray(read_yaml(path).get("starts") or [], dtype=np.int64)
    if not len(found):
        raise Misuse(f"{path}: no list under `starts`; write the places of the windows there")
    if found.min() < 0 or found.max() > last:
        raise Misuse(f"{path}: starts {found.min()} to {found.max()}; the validation text holds 0 to {last}")
    return found


def check_fit(model: torch.nn.Module, folder: Path, tokens: np.ndarray, length: int) -> None:
    """Refuse a model whose vocabulary or context is too small for the data."""
    vocabulary, needed = model.config.vocab_size, prepare.about(folder)["vocab_size"]
    if vocabulary < needed:
        raise Misuse(f"model.vocab_size {vocabulary} is smaller than the {needed} tokens of {folder.name}; raise it")
    if length > model.config.block_size:
        raise Misuse(
            f"train.seq_len {length} exceeds model.block_size {model.config.block_size}; lower one, raise the other"
        )
    if len(tokens) <= length:
        raise Misuse(f"{folder}/train.bin holds {len(tokens)} tokens, too few for seq_len {length}; lower it")


def spread_windows(tokens: np.ndarray, length: int, count: int, folder: Path) -> np.ndarray:
    """`count` windows at equal distances over the whole text, (count, length + 1); targets do not overlap."""
    fit = (len(tokens) - 1) // length
    if count > fit:
        raise Misuse(
            f"{folder}/val.bin holds {fit} validation windows of {length} tokens, not {count}; lower train.eval_windows"
        )
    return windows_at(tokens, np.arange(count) * fit // count * length, length)


def window_losses(model: torch.nn.Module, windows: np.ndarray, device: str, at_once: int = EVAL_WINDOWS) -> np.ndarray:
    """Mean loss of each window in nats per token, (windows,) float64. windows: (windows, T + 1)."""
    found = []
    for first in range(0, len(windows), at_once):
        tokens, targets = inputs_and_targets(windows[first : first + at_once], device)
        logits = model(tokens).float()  # (B, T, V)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")  # (B * T,)
        found.append(losses.view(targets.shape).double().mean(dim=1))
    return torch.cat(found).cpu().numpy()
