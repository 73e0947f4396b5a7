"""Rows in the official form, rows of task wic in a folder of their own, and a tiny model that reads bytes."""

import json

import prepared_folders
import torch

from lowmem.pipeline import experiments
from lowmem.tasks import superglue as task
from lowmem.weights import pretrained

OFFICIAL = {  # rows of our own in the official form, and the flat rows they become
    "RTE": ({"premise": "It rains.", "hypothesis": "It is wet.", "label": "not_entailment", "idx": 0}, [1]),
    "BoolQ": ({"question": "is ice cold", "passage": "Ice is cold.", "label": True, "idx": 0}, [1]),
    "WSC": (
        {
            "text": "Ann met Eve and she left.",
            "target": {"span1_text": "Ann", "span2_text": "she", "span1_index": 0},
            "label": False,
        },
        [0],
    ),
    "WiC": (
        {"word": "bank", "sentence1": "a river bank", "sentence2": "a bank loan", "label": False, "version": 1.1},
        [0],
    ),
    "MultiRC": (
        {
            "passage": {
                "text": "Tom ate a pear.",
                "questions": [
                    {"question": "Who ate?", "answers": [{"text": "Tom", "label": 1}, {"text": "Jim", "label": 0}]}
                ],
            },
            "idx": 0,
        },
        [1, 0],
    ),
    "COPA": (
        {"premise": "The vase fell.", "choice1": "It broke.", "choice2": "It sang.", "question": "effect", "label": 0},
        [0],
    ),
}
TINY = {"name": "llama", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_hidden": 32, "block_size": 256}


def prepared(tmp_path):
    """A root in which task wic is prepared, 37 and 11 rows."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sources.yaml").write_text("x: {sources: []}\n")
    write_rows(tmp_path, [row(k) for k in range(37)], [row(k) for k in range(11)])
    return tmp_path


def row(k):
    return {"word": "w", "sentence1": "one " * (1 + k % 5), "sentence2": "two", "label": k % 2}


def write_rows(root, learn, held_out, name="superglue_wic"):
    folder = root / "data/prepared" / name
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", learn), ("val", held_out)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    prepared_folders.seal(folder)


def config(measure=None, model=None, data=None, **settings):
    data = {"dataset": "superglue_wic", "source": "package", **(data or {})}
    size = {"steps": 6, "batch_size": 8, "eval_every": 3, **settings}
    return {
        "task": "superglue",
        "data": data,
        "model": {**TINY, **(model or {})},
        "train": size,
        "measure": measure or {},
    }


def built(root, **changes):
    torch.manual_seed(0)
    return task.build(config(**changes), 0, root, "cpu")


def words():
    return pretrained.byte_tokenizer()


def run_of(settings, seed=0):
    return {
        "id": f"trial/{settings['optimizer']['name']}/seed{seed}", "experiment": "trial", "variant": "a", "seed": seed,
        "tier": "smoke", "config": settings, "config_hash": experiments.config_hash({**settings, "seed": seed}),
        "resources": {"threads": 1, "mem_mb": 2000, "gpus": 0, "minutes": 30},
    }  # fmt: skip


def chosen(root, count=1000, limit=256, **settings):
    path = root / "data/prepared/superglue_wic/train.jsonl"
    return task.examples(path, "wic", {**task.DEFAULTS, **settings}, words(), limit, count)
