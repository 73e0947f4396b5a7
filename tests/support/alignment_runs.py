"""A root with prepared dialogues, and tiny runs of fine-tuning, reward models and ReMax over it."""

import json

import prepared_folders
import pytest
import torch

from lowmem.files import write_json
from lowmem.models import llama
from lowmem.pipeline import experiments
from lowmem.weights.pretrained import byte_tokenizer

TINY = {"name": "llama", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_hidden": 32, "vocab_size": 258, "block_size": 256}


WORDS = byte_tokenizer()


@pytest.fixture
def root(tmp_path):
    """A root with 24 + 8 instructions and as many pairs, prepared."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sources.yaml").write_text("x: {sources: []}\n")
    write_talk(tmp_path)
    return tmp_path


def write_talk(root):
    folder = root / "data/prepared/talk"
    folder.mkdir(parents=True)
    for split, count in (("train", 24), ("val", 8)):
        turns = [[["user", f"{split} question {k}?"]] for k in range(count)]
        rows = [{"turns": t, "answer": "yes " * (1 + k % 4)} for k, t in enumerate(turns)]
        pairs = [{"turns": t, "chosen": "yes " * (1 + k % 4), "rejected": "no"} for k, t in enumerate(turns)]
        for name, found in (("instructions", rows), ("pairs", pairs)):
            text = "".join(json.dumps(row) + "\n" for row in found)
            (folder / f"{name}.{split}.jsonl").write_text(text)
    write_json(folder / "excluded.json", {"empty": 2, "equal": 1, "two questions": 0})
    prepared_folders.seal(folder)


def config(task, measure=None, model=None, **settings):
    return {
        "task": task,
        "data": {"dataset": "talk", "source": "package"},
        "model": model or TINY,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {
            "steps": 4,
            "batch_size": 4,
            "eval_every": 2,
            **({"seq_len": 64} if task != "remax" else {}),
            **settings,
        },
        "measure": {"longest": 48, **(measure or {})},
    }


RULE = {"part": "instructions", "answer_tokens": 6, "eval_prompts": 4, "reward": {"share": "[a-m]"}, "beta": 0.1}


def run_of(config, seed=0, variant="a"):
    run = {
        "id": f"trial/{variant}/seed{seed}",
        "experiment": "trial",
        "variant": variant,
        "seed": seed,
        "tier": "smoke",
    }
    hashed = experiments.config_hash({**config, "seed": seed})
    return {**run, "config": config, "config_hash": hashed, "resources": {"threads": 1, "gpus": 0}}


def model(**settings):
    torch.manual_seed(0)
    return llama.build(**{key: value for key, value in {**TINY, **settings}.items() if key != "name"})
