"""What tasks on texts share: their settings, what they start from, and the batches of a run in its seeded order."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowmem.data import prepare
from lowmem.errors import refuse_unknown
from lowmem.finetuning import earlier_run
from lowmem.finetuning.examples import picked
from lowmem.training.task import Task, micro_batch
from lowmem.weights.pretrained import Tokenizer


@dataclass(frozen=True)
class Start:
    """What a run starts from. limit: tokens of question and answer together that the model reads at most."""

    folder: Path
    model: nn.Module
    words: Tokenizer
    limit: int


def start(config: dict, root: Path, device: str) -> Start:
    """The prepared data of config["data"], and model and tokenizer of config["model"]."""
    folder = prepare.ready(root, config["data"])
    model, tokenizer = earlier_run.language_model(root, config["model"], device)
    read = model.config.block_size
    return Start(folder, model, tokenizer, min(config["train"].get("seq_len") or read, read))


def settled(config: dict, defaults: dict) -> dict:
    """config["measure"] with defaults; Misuse for an unknown key."""
    asked = config.get("measure") or {}
    refuse_unknown(asked, defaults, "measure")
    return {**defaults, **asked}


def build(
    model: nn.Module,
    learn: list,
    seed: int,
    train: dict,
    collate: Callable[[list], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    evaluate: Callable[[nn.Module], dict[str, float]],
    *,
    bucket: int = 1,
    unit: str = "example",
    inputs: tuple[Path, ...] = (),
    finish: Callable[[nn.Module], tuple[dict, dict | None]] | None = None,
) -> Task:
    """A Task whose micro-batch i is collate(those of `learn` that fall to i in the order of this seed).

    bucket: see examples.order; everything else is as in Task.
    """
    size = train["batch_size"]
    parts = size // micro_batch(train)

    def batch(index: int) -> Any:
        return collate(picked(learn, seed, index, size, parts, bucket))

    return Task(model, batch, loss, evaluate, size // parts, unit, inputs, finish)
