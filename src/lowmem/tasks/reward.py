"""A reward model: a scalar for an answer, learned from pairs of which people (or a judge) preferred one."""

from pathlib import Path

import numpy as np
import torch

from lowmem.finetuning import dialogues, rewards, text_task
from lowmem.finetuning.examples import Example, by_length
from lowmem.training.task import Task

# As in tasks/sft.py; train_examples and val_examples count pairs.
DEFAULTS = {"template": "human", "longest": 256, "train_examples": None, "val_examples": None, "bucket": 1}
DEFAULTS |= {"eval_tokens": 8192}


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """Task from config keys data, model, train and measure (see DEFAULTS)."""
    settings = text_task.settled(config, DEFAULTS)
    begun = text_task.start(config, root, device)
    scorer = rewards.with_scalar_head(begun.model, device)
    learn, held_out, counts, paths = dialogues.both_splits(begun, "pairs", ("chosen", "rejected"), settings)
    groups, tokenizer = by_length(held_out, settings["eval_tokens"]), begun.words

    def loss(model: torch.nn.Module, batch: list[Example]) -> torch.Tensor:
        return rewards.bradley_terry(*both(model, batch, tokenizer.end))

    def margins(model: torch.nn.Module) -> torch.Tensor:
        found = [both(model, group, tokenizer.end) for group in groups]
        return torch.cat([better - worse for better, worse in found])  # (pairs,)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        found = margins(model)
        loss = rewards.bradley_terry(found, torch.zeros_like(found)).item()
        return {"val_loss": loss, "accuracy": 100 * hits(found).mean().item()}

    def finish(model: torch.nn.Module) -> tuple[dict, dict]:
        found = hits(margins(model)).cpu().numpy()  # the same pairs in the same order for every run
        return counts, {"hits": found.astype(np.float32)}

    train, bucket = config["train"], settings["bucket"]
    return text_task.build(
        scorer, learn, seed, train, list, loss, evaluate, bucket=bucket, unit="pair", inputs=paths, finish=finish
    )


def both(model: torch.nn.Module, pairs: list[Example], end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the preferred and of the other answers, (B,) each, in one pass."""
    texts = [pair.source + pair.options[k] for k in (0, 1) for pair in pairs]
    better, worse = rewards.scores(model, texts, end).chunk(2)
    return better, worse


def hits(margins: torch.Tensor) -> torch.Tensor:
    """1 for a pair in the right order, 0 in the wrong one, 1/2 for equal scores."""
    return (torch.sign(margins) + 1) / 2
