"""Supervised fine-tuning on instructions: loss on the answers' tokens only, held-out loss per answer token."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem.finetuning import dialogues, judge, text_task
from lowmem.finetuning.examples import Example, by_length, loss, padded
from lowmem.training.task import Task

# template: of dialogues.py. longest: a question with more tokens starts later. train_examples, val_examples: at most so
# many (null: all). bucket: sort the examples of this many batches by length, which saves padding. eval_tokens: in one
# pass of an evaluation. questions, answer_tokens: for a judge, see judge.py.
DEFAULTS = {"template": "human", "longest": 256, "train_examples": None, "val_examples": None, "bucket": 1}
DEFAULTS |= {"eval_tokens": 8192, "questions": None, "answer_tokens": 512}


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """Task from config keys data, model, train and measure (see DEFAULTS)."""
    settings = text_task.settled(config, DEFAULTS)
    questions = judge.asked(root, settings)
    begun = text_task.start(config, root, device)
    learn, held_out, counts, paths = dialogues.both_splits(begun, "instructions", ("answer",), settings)
    groups, tokenizer = by_length(held_out, settings["eval_tokens"]), begun.words

    def collate(examples: list[Example]) -> dict[str, Tensor]:
        return padded(examples, tokenizer.end, device)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        return {"val_loss": held_out_loss(model, groups, tokenizer.end, device)}

    def finish(model: torch.nn.Module) -> tuple[dict, dict | None]:
        return counts, judge.answers(model, tokenizer, questions, settings)

    train, bucket, inputs = config["train"], settings["bucket"], (*paths, *judge.questions_file(root, settings))
    return text_task.build(
        begun.model, learn, seed, train, collate, loss, evaluate, bucket=bucket, inputs=inputs, finish=finish
    )


def held_out_loss(model: torch.nn.Module, groups: list, end: int, device: str) -> float:
    """Mean over all answer tokens, in nats; its exponential is the perplexity."""
    total, count = 0.0, 0
    for group in groups:
        at = padded(group, end, device)
        logits = model(at["tokens"], at=(at["rows"], at["columns"]))  # (N, V)
        total += F.cross_entropy(logits.float(), at["targets"], reduction="sum").item()
        count += len(at["targets"])
    return total / count
