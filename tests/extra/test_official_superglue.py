"""Official SuperGLUE rows become questions. $LOWMEM_EXTRA_DATA is a folder that holds fewglue/<task>/train.jsonl, and
superglue/<task>/{train,val}.jsonl, the whole files (of BoolQ the validation questions are enough)."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from lowmem.data import superglue_sources
from lowmem.finetuning import superglue_prompts
from lowmem.pipeline.experiments import find_root

DATA = Path(os.environ["LOWMEM_EXTRA_DATA"]) / "fewglue"
WHOLE = Path(os.environ["LOWMEM_EXTRA_DATA"]) / "superglue"
SIZES = {  # of the published splits: (training, validation)
    "rte": (2490, 277),
    "boolq": (None, 3270),
    "wsc": (554, 104),
    "wic": (5428, 638),
    "multirc": (27243, 4848),
    "copa": (400, 100),
}


def script():
    """data/superglue/prepare.py as a module."""
    spec = importlib.util.spec_from_file_location("superglue_files", find_root() / "data/superglue/prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("task", superglue_sources.OFFICIAL)
def test_rows_become_questions(tmp_path, task):
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text((DATA / superglue_sources.OFFICIAL[task] / "train.jsonl").read_text())
    text = dict(script().files(tmp_path))["train.jsonl"].read().decode()
    asked = [superglue_prompts.question(task, json.loads(line)) for line in text.splitlines()]
    assert len(asked) >= 32 and {question.label for question in asked} <= {0, 1}


@pytest.mark.parametrize("task", SIZES)
def test_the_whole_files_have_the_published_sizes_and_every_row_becomes_a_question(task):
    for split, size in zip(("train", "val"), SIZES[task], strict=True):
        if size is None:
            continue
        lines = (WHOLE / superglue_sources.OFFICIAL[task] / f"{split}.jsonl").read_text().splitlines()
        rows = [row for line in lines for row in script().flat(json.loads(line))]
        asked = [superglue_prompts.question(task, row) for row in rows]
        assert len(asked) == size and {question.label for question in asked} == {0, 1}
