"""Official SuperGLUE rows become questions. $LOWMEM_EXTRA_DATA is a folder that holds fewglue/<task>/train.jsonl."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from lowmem.data import superglue_sources
from lowmem.finetuning import superglue_prompts
from lowmem.pipeline.experiments import find_root

DATA = Path(os.environ["LOWMEM_EXTRA_DATA"]) / "fewglue"


@pytest.mark.parametrize("task", superglue_sources.OFFICIAL)
def test_rows_become_questions(tmp_path, task):
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text((DATA / superglue_sources.OFFICIAL[task] / "train.jsonl").read_text())
    spec = importlib.util.spec_from_file_location("superglue_files", find_root() / "data/superglue/prepare.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = dict(script.files(tmp_path))["train.jsonl"].read().decode()
    asked = [superglue_prompts.question(task, json.loads(line)) for line in text.splitlines()]
    assert len(asked) >= 32 and {question.label for question in asked} <= {0, 1}
