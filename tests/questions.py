"""Rows of task wic, prepared in a folder of their own, and a tiny model that reads bytes: shared by the SuperGLUE tests."""

import json

import prepared_folders
import torch

from lowmem import experiments, pretrained
from lowmem.tasks import superglue as task

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
    return pretrained.byte_words()


def run_of(settings, seed=0):
    return {
        "id": f"trial/{settings['optimizer']['name']}/seed{seed}", "experiment": "trial", "variant": "a", "seed": seed,
        "tier": "smoke", "config": settings, "config_hash": experiments.config_hash({**settings, "seed": seed}),
        "resources": {"threads": 1, "mem_mb": 2000, "gpus": 0, "minutes": 30},
    }  # fmt: skip


def chosen(root, count=1000, limit=256, **settings):
    path = root / "data/prepared/superglue_wic/train.jsonl"
    return task.examples(path, "wic", {**task.DEFAULTS, **settings}, words(), limit, count)
