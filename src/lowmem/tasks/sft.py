"""Supervised fine-tuning on instructions: loss on the answers' tokens only, held-out loss per answer token."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem.data import prepare
from lowmem.errors import Misuse, nearest
from lowmem.finetuning import dialogues, earlier_run, judge
from lowmem.finetuning.examples import by_length, loss, padded, picked
from lowmem.training.task import Task, micro_batch

# template: of dialogues.py. longest: a question with more tokens starts later. train_examples, val_examples: at most so
# many (null: all). bucket: sort the examples of this many batches by length, which saves padding. eval_tokens: in one
# pass of an evaluation. questions, answer_tokens: for a judge, see judge.py.
DEFAULTS = {"template": "human", "longest": 256, "train_examples": None, "val_examples": None, "bucket": 1}
DEFAULTS |= {"eval_tokens": 8192, "questions": None, "answer_tokens": 512}


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """Task from config keys data, model, train and measure (see DEFAULTS)."""
    train, settings = config["train"], settled(config, DEFAULTS)
    folder, questions = prepare.ready(root, config["data"]), judge.asked(root, settings)
    model, words = earlier_run.language_model(root, config["model"], device)
    limit = length_limit(train, model)
    learn, held_out, counts, paths = dialogues.both_splits(folder, "instructions", ("answer",), words, settings, limit)
    size = train["batch_size"]
    parts = size // micro_batch(train)
    groups = by_length(held_out, settings["eval_tokens"])

    def batch(index: int) -> dict[str, Tensor]:
        return padded(picked(learn, seed, index, size, parts, settings["bucket"]), words.end, device)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        return {"val_loss": held_out_loss(model, groups, words.end, device)}

    def finish(model: torch.nn.Module) -> tuple[dict, dict | None]:
        return {"excluded": dialogues.excluded(folder), **counts}, judge.answers(model, words, questions, settings)

    inputs = (*paths, *judge.questions_file(root, settings))
    return Task(model, batch, loss, evaluate, units=size // parts, unit="example", inputs=inputs, finish=finish)


def held_out_loss(model: torch.nn.Module, groups: list, end: int, device: str) -> float:
    """Mean over all answer tokens, in nats; its exponential is the perplexity."""
    total, count = 0.0, 0
    for group in groups:
        at = padded(group, end, device)
        logits = model(at["tokens"], at=(at["rows"], at["columns"]))  # (N, V)
        total += F.cross_entropy(logits.float(), at["targets"], reduction="sum").item()
        count += len(at["targets"])
    return total / count


def settled(config: dict, defaults: dict) -> dict:
    """config["measure"] with defaults; Misuse for an unknown key."""
    asked = config.get("measure") or {}
    unknown = sorted(asked.keys() - defaults)
    if unknown:
        raise Misuse(f"measure: unknown key {unknown[0]!r}{nearest(unknown[0], defaults)}")
    return {**defaults, **asked}


def length_limit(train: dict, model: torch.nn.Module) -> int:
    """Tokens of question and answer together that a model reads at most."""
    return min(train.get("seq_len") or model.config.block_size, model.config.block_size)
