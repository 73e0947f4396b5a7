"""Weights that an earlier run left (pipeline/prerequisites.py): what a run starts from, or the reward model that it asks.

In the configuration that a task gets, training/job.py has put {config, weights} of that run in the place of its name.
"""

from pathlib import Path

import torch
from torch import nn

from lowmem import distributed
from lowmem.errors import Misuse
from lowmem.finetuning import rewards
from lowmem.models import llama
from lowmem.weights import lazy_weights, pretrained
from lowmem.weights.pretrained import Tokenizer

TASKS = ("pretrain", "sft", "reward")  # whose runs are language models


def language_model(root: Path, settings: dict, device: str) -> tuple[nn.Module, Tokenizer]:
    """As pretrained.language_model; `pretrained` may also be {config, weights} of an earlier run."""
    source = settings.get("pretrained")
    if not isinstance(source, dict):
        return pretrained.language_model(root, settings, device)
    own = sorted(settings.keys() - {"name", "pretrained", "dtype", "adapter"})
    if own:
        raise Misuse(f"model: {own[0]} cannot be set beside pretrained; the earlier training decides it")
    model, tokenizer = trained(root, source, device)
    return pretrained.finished(model, settings, device), tokenizer


def trained(root: Path, start: dict, device: str) -> tuple[nn.Module, Tokenizer]:
    """Model and tokenizer at the end of an earlier run. The caller's random numbers stay untouched.

    Where several processes share the work, the weights stay in their file until fsdp.shard_model().
    """
    with torch.random.fork_rng():
        model, tokenizer = blank(root, start["config"], device)
    path = Path(start["weights"])
    lazy_weights.register(model, {name: (path, name) for name, _ in model.named_parameters()})
    if distributed.world() == 1:
        lazy_weights.load(model, device)
    return model, tokenizer


def blank(root: Path, config: dict, device: str) -> tuple[nn.Module, Tokenizer]:
    """The model of a run's configuration, whatever its weights, and its tokenizer."""
    settings = config["model"]
    if config["task"] not in TASKS:
        raise Misuse(f"no training starts from task {config['task']}; choose one of {', '.join(TASKS)}")
    if config["task"] == "pretrain" and config["data"].get("tokenizer", "byte") != "byte":
        raise Misuse("a language model to start from reads bytes; set its data.tokenizer to byte")
    if config["task"] == "pretrain":
        if settings.get("name") != "llama":
            raise Misuse(f"a language model to start from is a llama; got {settings}")
        with torch.device(device):
            model, tokenizer = (
                llama.build(**{k: v for k, v in settings.items() if k != "name"}),
                pretrained.byte_tokenizer(),
            )
    elif isinstance(settings.get("pretrained"), dict):
        model, tokenizer = blank(root, settings["pretrained"], device)
        model = pretrained.finished(model, settings, device)
    else:
        model, tokenizer = pretrained.language_model(root, settings, device)
    if config["task"] == "reward":
        model = rewards.with_scalar_head(model, device)
    return model, tokenizer
