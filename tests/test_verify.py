"""`lowmem records verify`: alterations are found, drift is named, and a sample is run again."""

import json

import pytest
from synthetic import checkout

from lowmem import experiments, kept_files, provenance, record, train, verify
from lowmem.errors import Misuse

CONFIG = {"task": "quadratic", "measure": {"blocks": {"a": {"values": [1, 2]}}, "size": 3, "horizons": [4]}}
RUN = {
    "id": "toy/only/seed0",
    "experiment": "toy",
    "variant": "only",
    "seed": 0,
    "tier": "own",
    "config": CONFIG,
    "config_hash": experiments.config_hash({**CONFIG, "seed": 0}),
    "resources": {"threads": 1, "gpus": 0},
}


@pytest.fixture
def root(tmp_path):
    root = checkout(tmp_path)
    train.run_job(root, [RUN])
    return root


def answer(root, capsys, *arguments, **more):
    code = verify.verify(root, [root / "results"], *arguments, **more)
    return code, capsys.readouterr().out


def test_a_whole_record_passes(root, capsys):
    code, said = answer(root, capsys)
    assert code == 0 and "1 records: 1 whole, 0 made by other code or data, 0 damaged" in said


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("metrics", {"final": {"x": 1}, "best": {}}, "record.json was altered"),
        ("digest", None, "record.json was altered"),
    ],
)
def test_an_altered_record_fails_with_its_place(root, capsys, key, value, words):
    path = record.folder(root, RUN) / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    code, said = answer(root, capsys)
    assert code == 1 and "damaged: results/own/toy/only/seed0" in said and words in said


def test_a_configuration_that_is_not_the_hashed_one_fails(root, capsys):
    path = record.folder(root, RUN) / "record.json"
    kept_files.write_json(path, {**json.loads(path.read_text()), "config_hash": "0" * 16})
    code, said = answer(root, capsys)
    assert code == 1 and "config_hash is not that of its configuration" in said


def test_lost_arrays_fail(root, capsys):
    (record.folder(root, RUN) / "arrays.npz").unlink()
    code, said = answer(root, capsys)
    assert code == 1 and "arrays.npz was altered or lost" in said


def test_other_code_is_named_and_is_no_fault(root, capsys, monkeypatch):
    real = provenance.code_hash
    monkeypatch.setattr(provenance, "code_hash", lambda path: "other" if path.stem == "quadratics" else real(path))
    code, said = answer(root, capsys)
    assert code == 0 and "drifted: src/lowmem/quadratics.py" in said and "1 made by other code or data" in said


def test_a_sample_run_again_is_equal_and_a_forged_result_is_not(root, capsys):
    code, said = answer(root, capsys, rerun=1)
    assert code == 0 and "equal when run again: results/own/toy/only/seed0" in said
    path = record.folder(root, RUN) / "record.json"
    forged = json.loads(path.read_text())
    key = next(iter(forged["metrics"]["final"]))
    forged["metrics"]["final"][key] = 123.0
    kept_files.write_json(path, forged)
    code, said = answer(root, capsys, rerun=1)
    assert code == 1 and "differs when run again" in said and "metrics" in said


def test_no_record_at_all_is_said(tmp_path):
    with pytest.raises(Misuse, match=r"no record.json below"):
        verify.verify(checkout(tmp_path), [tmp_path])
