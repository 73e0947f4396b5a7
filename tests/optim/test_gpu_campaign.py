"""The campaign that waits for a GPU: its predictions are the counts of today, and every section runs in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowmem.models import llama
from lowmem.optim import AdamMini
from lowmem.optim.core import gpu_tables

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WITHOUT_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def sections(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_sections

    return gpu_sections


def test_the_predictions_of_steps_are_those_of_the_counts(sections):
    import gpu_forecast as forecast

    written = json.loads((BENCHMARKS / "gpu_predictions.json").read_text())
    assert written["steps"] == json.loads(json.dumps(forecast.predicted_steps()))
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


@pytest.mark.parametrize(("model", "place"), [("134M", 0), ("7B", 1)])
def test_launches_and_bytes_of_the_kernels_are_those_of_their_tables(sections, model, place):
    given = sections.MODELS[model]
    with torch.device("meta"):
        net = llama.build(given) if isinstance(given, str) else llama.build(**given)
    optimizer, tensors, elements, twice, scalars = AdamMini(net, lr=1e-3), [], 0, 0, 0
    for i, p in enumerate(net.parameters()):
        lay, count = optimizer.layout(p), optimizer.blocks(p).count
        tensors.append(gpu_tables.Tensors(i, 0, p, p, torch.empty(count, device="meta"), lay, True))
        elements, scalars = elements + p.numel(), scalars + count
        twice += sum(s[2] * s[4] * s[5] for s in lay.strips if s[2] > 1 or s[5] > gpu_tables.LONGEST)
    started = len(gpu_tables._launches([strip for t in tensors for strip in gpu_tables._strips(t, "")]))
    for precision, size in (("fp32", 4), ("bf16", 2)):
        counted, moved = sections.COUNTED[f"AdamMini {precision}"], 5 * size * elements + size * twice + 16 * scalars
        assert counted[place] == started
        assert moved / elements <= counted[2] + 0.05  # the larger of the two sizes
        assert model == "134M" or round(moved / elements, 1) == counted[2]


@pytest.mark.slow
def test_every_section_runs_in_small_without_a_gpu(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu_campaign.py", "--tiny", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=WITHOUT_GPU)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["tests"] == {"missing": "tests/gpu needs a GPU"}
    rows = {name: found[name]["rows"] for name in ("steps", "variants", "training", "batches")}
    assert all(rows.values()) and "LOMO clipped" in rows["training"] and "134M AdamMini bf16" in rows["steps"]
    assert rows["steps"]["134M torch fused AdamW fp32"]["times_fused_adamw"] == 1.0
    assert rows["training"]["AdamMini"]["share_of_update"] > 0 and rows["steps"]["7B AdamMini bf16"]["of_copy_rate"] > 0
    assert "Traceback" not in done.stderr
    assert (tmp_path / "result.md").read_text().startswith("# GPU campaign on")


@pytest.mark.parametrize(("seconds", "largest"), [(13.0, 80), (13.0, 77), (1.0, 76), (40.0, 80)])
def test_batches_says_what_fits_within_its_time(sections, monkeypatch, seconds, largest):
    """A clock that only training moves; step: so many seconds for one of these batches."""
    clock = [0.0]

    def train(setting, chosen, rounds=3, warmup=3):
        clock[0] += seconds * (1 + rounds + warmup if chosen.batch <= largest else 1)
        return {"seconds": seconds} if chosen.batch <= largest else {"missing": "out of memory"}

    monkeypatch.setattr(sections, "train", train)
    monkeypatch.setattr(sections.time, "monotonic", lambda: clock[0])
    foreseen = {"AdamW": {"batch": 78}, "AdamMini": {"batch": 78}}
    found = sections.batches(sections.Setting("cuda", False, 0.0, deadline=60.0, forecast=foreseen))
    assert found["rows"]["AdamW"]["batch"] == min(78, largest) and found["rows"]["AdamW"]["seconds"] == seconds
    assert clock[0] < 60 + 3 * seconds
    if seconds == 1.0:
        assert found["rows"]["AdamMini"] == {"batch": 76, "seconds": 1.0, "one_more": "out of memory"}
    if largest == 80 and seconds == 13.0:
        assert found["rows"]["AdamW"]["one_more"] == "fits" and "AdamMini" in found["rows"]


def test_a_report_says_by_how_many_per_cent_a_prediction_is_off(sections):
    import gpu_campaign

    rows = {"AdamW": {"seconds": 0.5, "peak_gib": 100.0}, "LOMO": {"missing": "out of memory"}}
    text = gpu_campaign.report(
        {"device": "cuda", "training": {"rows": rows}}, {"training": {"AdamW": {"seconds": 0.6}}}
    )
    assert "| AdamW | 0.5 | 100 | - | 0.6 (+20 %) |" in text and "| LOMO | - | - | out of memory | - |" in text


def test_without_a_gpu_the_campaign_says_so_in_one_line(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu_campaign.py", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=WITHOUT_GPU)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("--tiny runs every section in small")
