"""`lowmem preflight`: what an experiment lacks is named before anything runs, and nothing is downloaded."""

import shutil

import pytest
from synthetic import ROOT, checkout

from lowmem.files import write_json
from lowmem.pipeline import experiments, planning, preflight


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The real configuration without data, without network, with every client installed and no token."""
    root = checkout(tmp_path)
    for name in ("raw", "prepared"):
        (root / "data" / name).unlink(missing_ok=True)
    monkeypatch.setattr(preflight, "answers", lambda host: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nowhere"))
    for key in preflight.TOKENS:
        monkeypatch.delenv(key, raising=False)
    return root


def answer(root, capsys, tier, *names, options=None):
    code = preflight.check(root, tier, options or {}, list(names) or None)
    return code, capsys.readouterr().out


@pytest.mark.parametrize("tier", experiments.tier_names(ROOT))
def test_every_experiment_of_a_tier_has_its_row(root, capsys, tier):
    _, said = answer(root, capsys, tier)
    names = {line.split()[0] for line in said.splitlines() if not line.startswith((" ", "downloads:"))}
    assert {job["experiment"] for job in planning.jobs(root, tier, {}).values()} <= names


def test_packages_need_only_their_client(root, capsys, monkeypatch):
    code, said = answer(root, capsys, "laptop", "gpt2_sizes")
    assert code == 0 and "every experiment could start" in said
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, said = answer(root, capsys, "laptop", "gpt2_sizes")
    assert code == 1 and "missing: sotu (package): npm is not installed" in said


def test_a_hub_that_does_not_answer_is_named_and_a_fetched_dataset_is_enough(root, capsys):
    code, said = answer(root, capsys, "paper", "gpt2_decay")
    assert code == 1 and "openwebtext (hub)" in said and "gpt2_decay" in said.splitlines()[-1]
    write_json(root / "data/raw/openwebtext@hub/fetched.json", {})
    assert answer(root, capsys, "paper", "gpt2_decay")[0] == 0


def test_own_files_are_asked_for_with_the_command(root, capsys):
    code, said = answer(root, capsys, "laptop", "gpt2_sizes", options={"openwebtext": "folder"})
    assert code == 1 and "lowmem fetch openwebtext --source folder --folder DIR" in said


def test_gated_weights_need_a_token_and_a_folder_needs_none(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "answers", lambda host: True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for key in preflight.TOKENS:
        monkeypatch.delenv(key, raising=False)
    assert "is gated" in preflight.of_weights(ROOT, "meta-llama/Llama-2-7b-hf")
    assert preflight.of_weights(ROOT, "huggyllama/llama-7b") is None
    monkeypatch.setenv("HF_TOKEN", "x")
    assert preflight.of_weights(ROOT, "meta-llama/Llama-2-7b-hf") is None
    (tmp_path / "config.json").write_text("{}")
    assert preflight.of_weights(ROOT, str(tmp_path)) is None
    assert "no folder with a config.json" in preflight.of_weights(ROOT, "/nowhere/llama")


def test_the_row_says_gpus_expected_hours_limit_needs_and_what_is_not_as_published(root, capsys):
    code, said = answer(root, capsys, "paper", "sft")
    row = next(line for line in said.splitlines() if line.startswith("sft")).split()
    assert code == 1 and row[:3] == ["sft", "12", "8"] and {"min", "h"} & set(row[3:]) and row[-1] == "no"
    assert "needs: ultrafeedback (hub, size unknown), weights meta-llama/Llama-2-7b-hf (14 GB)" in said
    assert "not as published: MT-Bench scores need" in said and "14 GB of weights into the hub's cache" in said
    assert "outlast their limit" not in said
    assert "6 of its jobs should outlast their limit" in answer(root, capsys, "paper", "llama_scaling")[1]


def test_weights_in_the_hubs_cache_are_enough(root, capsys, tmp_path):
    preflight.hub_cache("meta-llama/Llama-2-7b-hf").mkdir(parents=True)
    write_json(root / "data/raw/ultrafeedback@hub/fetched.json", {})
    code, said = answer(root, capsys, "paper", "sft")
    assert "missing: weights" not in said and "0 kB of weights" in said
    assert code == 0 or "missing: disk" in said


def test_a_gated_dataset_needs_a_token(root, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "answers", lambda host: True)
    assert "ILSVRC/imagenet-1k is gated" in answer(root, capsys, "paper", "resnet")[1]


def test_what_runs_write_is_asked_of_the_disk_and_unknown_sizes_are_named(root, capsys, monkeypatch):
    usage = shutil._ntuple_diskusage(10**12, 10**11, 10**11)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = answer(root, capsys, "paper", "remax")[1]  # 7 B: twice a checkpoint with two moments, two kept weights
    assert "disk: 224 GB of data and checkpoints" in said and "besides: ultrafeedback, whose size" in said
    assert "missing: disk space for data and checkpoints" in said
    assert "disk: 260 GB" in answer(root, capsys, "paper", "superglue_sizes")[1]  # LOMO on 65 B in 16 bits, twice
    assert "disk space" not in answer(root, capsys, "laptop", "remax")[1].replace("disk: ", "")


def test_a_full_disk_is_said(root, capsys, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, said = answer(root, capsys, "laptop", "gpt2_sizes")
    assert code == 1 and "missing: disk space" in said
