"""The campaign that waits for a GPU: its predictions are the counts of today, and every section runs in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WITHOUT_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def sections(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_sections

    return gpu_sections


def test_the_predictions_of_steps_are_those_of_the_counts(sections):
    written = json.loads((BENCHMARKS / "gpu_predictions.json").read_text())
    assert written["steps"] == json.loads(json.dumps(sections.predicted_steps()))
    assert set(written["training"]) == set(sections.TRAINING)


def test_the_counts_are_those_that_are_held_by_a_test(sections):
    import test_gpu_traffic

    names = [
        "AdamW fp32",
        "AdamW bf16",
        "AdamMini without Triton fp32",
        "AdamMini without Triton bf16",
        "Lion fp32",
        "Adafactor fp32",
    ]
    for case in names:
        held = test_gpu_traffic.TABLE[case.replace(" without Triton", "")]
        launches, _, traffic = sections.COUNTED[case]
        assert (launches, traffic) == tuple(held[2:]), case


@pytest.mark.slow
def test_every_section_runs_in_small_without_a_gpu(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu_campaign.py", "--tiny", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=WITHOUT_GPU)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["tests"] == {"missing": "tests/gpu needs a GPU"}
    rows = {name: found[name]["rows"] for name in ("steps", "variants", "training", "batches")}
    assert all(rows.values()) and "LOMO clipped" in rows["training"] and "134M AdamMini bf16" in rows["steps"]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "result.md").read_text().startswith("# GPU campaign on")


def test_without_a_gpu_the_campaign_says_so_in_one_line(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu_campaign.py", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=WITHOUT_GPU)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("--tiny runs every section in small")
