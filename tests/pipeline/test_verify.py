"""`lowmem records verify`: alterations are found, drift is named, and a sample is run again."""

import json

import pytest
from synthetic import checkout
from toy_run import CONFIG, RUN

from lowmem import kept_files, provenance
from lowmem.errors import Misuse
from lowmem.pipeline import record, verify
from lowmem.provenance import neutral
from lowmem.training import job


@pytest.fixture
def root(tmp_path):
    root = checkout(tmp_path)
    job.run_job(root, [RUN])
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
    monkeypatch.setattr(provenance, "moved_hash", lambda old: None)
    code, said = answer(root, capsys)
    assert code == 0 and "drifted: src/lowmem/analysis/quadratics.py" in said and "1 made by other code or data" in said


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


def test_a_record_of_other_code_is_run_again_with_todays_and_its_difference_is_no_fault(root, capsys):
    path = record.folder(root, RUN) / "record.json"
    other = json.loads(path.read_text())
    name = next(iter(other["code"]["files"]))
    other["code"]["files"][name] = "0" * 64
    kept_files.write_json(path, other)
    code, said = answer(root, capsys, rerun=1)
    assert code == 0 and "0 whole" in said
    assert "run with today's: results/own/toy/only/seed0" in said and "equal when run again" in said
    key = next(iter(other["metrics"]["final"]))
    other["metrics"]["final"][key] = 123.0
    kept_files.write_json(path, other)
    code, said = answer(root, capsys, rerun=1)
    assert code == 0 and "differs when run again" in said


# -- changes of code that leave results equal ------------------------------------------------------------------------


@pytest.fixture
def changed(root, tmp_path, monkeypatch):
    """The root, whose record was made while one of its files of code was another one."""
    monkeypatch.setattr(neutral, "FILE", tmp_path / "neutral.json")
    alter(root, lambda made: made["code"]["files"].update({"src/lowmem/tasks/quadratic.py": "tree:" + "0" * 64}))
    return root


def alter(root, change):
    path = record.folder(root, RUN) / "record.json"
    made = json.loads(path.read_text())
    change(made)
    kept_files.write_json(path, made)


def test_reruns_with_equal_bits_keep_the_records_of_that_code_whole(changed, capsys):
    assert record.reusable(changed, RUN) is None
    code, said = answer(changed, capsys, rerun=1, accepting=True)
    assert code == 0 and "accepted: 1 record like toy/only/seed0: code changed, 1 rerun bit-equal" in said
    [entry] = neutral.entries()
    assert entry["runs"] == ["own/toy/only/seed0"] and entry["changed"] == ["src/lowmem/tasks/quadratic.py"]
    assert entry["new"] == neutral.today(CONFIG) and entry["processor"]
    code, said = answer(changed, capsys)
    assert (
        code == 0 and "whole (code changed since; 1 rerun bit-equal): 1 record" in said and "1 whole, 0 made by" in said
    )
    assert record.reusable(changed, RUN)["config_hash"] == RUN["config_hash"]


def test_a_rerun_with_other_bits_is_refused(changed, capsys):
    def last_bit(made):
        key = next(iter(made["metrics"]["final"]))
        made["metrics"]["final"][key] = 123.0

    alter(changed, last_bit)
    code, said = answer(changed, capsys, rerun=1, accepting=True)
    assert code == 1 and "refused: 1 record like toy/only/seed0" in said and not neutral.FILE.exists()
    assert record.reusable(changed, RUN) is None


def test_changed_data_and_runs_that_are_too_long_are_not_accepted(changed, capsys):
    code, said = answer(changed, capsys, rerun=1, accepting=True, minutes=-1.0)
    assert code == 0 and "not shown: 1 record" in said and "0 of the 1 to run again are short enough" in said
    alter(changed, lambda made: made["code"]["files"].update({"data/prepared/toy/x.npy": "0" * 64}))
    code, said = answer(changed, capsys, rerun=1, accepting=True)
    assert code == 0 and "accepted" not in said and not neutral.FILE.exists()


@pytest.mark.parametrize("there", [True, False])
def test_where_only_data_differ_or_are_not_here_accepted_code_is_not_named(changed, capsys, there):
    answer(changed, capsys, rerun=1, accepting=True)
    name = "data/prepared/toy/x.npy"
    if there:
        (changed / name).parent.mkdir(parents=True)
        (changed / name).write_bytes(b"other")
    alter(changed, lambda made: made["code"]["files"].update({name: "0" * 64}))
    code, said = answer(changed, capsys)
    how = "is another file now than for" if there else "is not here, but was read by"
    assert code == 0 and f"drifted: {name} {how} 1 record" in said and "drifted: src/" not in said
    assert "0 whole, 1 made by other code or data" in said and record.reusable(changed, RUN) is None


def test_what_was_accepted_holds_for_no_other_code(changed, capsys, monkeypatch):
    answer(changed, capsys, rerun=1, accepting=True)
    real = provenance.code_hash
    with monkeypatch.context() as later:
        later.setattr(provenance, "code_hash", lambda path: "tree:1" if path.stem == "quadratics" else real(path))
        assert record.reusable(changed, RUN) is None
    alter(changed, lambda made: made["code"]["files"].update({"src/lowmem/tasks/quadratic.py": "tree:" + "1" * 64}))
    assert record.reusable(changed, RUN) is None


def test_acceptance_needs_reruns_and_a_file_that_nobody_edited(changed, capsys):
    with pytest.raises(Misuse, match=r"--accept needs reruns to compare; add --rerun N"):
        answer(changed, capsys, accepting=True)
    answer(changed, capsys, rerun=1, accepting=True)
    neutral.FILE.write_text(neutral.FILE.read_text().replace("seed0", "seed1"))
    with pytest.raises(kept_files.Damaged, match="was altered since it was written"):
        answer(changed, capsys)


def test_changes_one_after_the_other_are_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(neutral, "FILE", tmp_path / "neutral.json")
    for old, new in (("a", "b"), ("b", "c"), ("c", "a"), ("x", "d")):
        neutral.add(old, new, ["src/lowmem/x.py"], ["smoke/run"], "a processor")
    assert [one["new"] for one in neutral.shown("a", "c")] == ["b", "c"]
    assert neutral.shown("a", "d") == [] and neutral.shown("c", "x") == []


def test_the_committed_file_was_written_by_the_command():
    for entry in neutral.entries():
        assert entry["runs"] and entry["changed"] and entry["processor"] and entry["old"] != entry["new"]


def test_no_record_at_all_is_said(tmp_path):
    with pytest.raises(Misuse, match=r"no record.json below"):
        verify.verify(checkout(tmp_path), [tmp_path])
