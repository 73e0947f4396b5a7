"""Archived records: the same bytes for the same records, whole or refused, and enough to redraw a report."""

import json
import shutil

import pytest
from synthetic import ROOT, checkout, only, write_losses, write_state_memory
from tiny import curve, make_root, make_run

from lowmem.errors import Failed, Misuse
from lowmem.files import read_json
from lowmem.pipeline import archive, experiments, planning, record, verify
from lowmem.reporting import exhibit, report
from lowmem.training import job


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


def test_what_is_kept_comes_back_byte_for_byte(root):
    run = make_run()
    job.run_job(root, [run])
    assert archive.keep(root, "smoke/trial") == 1
    first = archive.archive(root, "smoke/trial").read_bytes()
    assert archive.keep(root, "smoke/trial") == 1 and archive.archive(root, "smoke/trial").read_bytes() == first
    back = archive.folder(root, "smoke/trial") / "a/seed0"
    for name in ("record.json", "curve.jsonl"):
        assert (back / name).read_bytes() == (record.folder(root, run) / name).read_bytes()
    assert archive.names(root) == ["smoke/trial"] and archive.names(root, "laptop") == []


def test_a_newer_archive_replaces_what_was_unpacked(root):
    job.run_job(root, [make_run()])
    archive.keep(root, "smoke/trial")
    archive.folder(root, "smoke/trial")
    job.run_job(root, [make_run(variant="b")])
    archive.keep(root, "smoke/trial")
    assert sorted(path.parent.name for path in archive.folder(root, "smoke/trial").rglob("seed0")) == ["a", "b"]


def test_nothing_finished_and_altered_records_are_not_kept(root):
    with pytest.raises(Misuse, match="no finished record"):
        archive.keep(root, "laptop/nothing")
    run = make_run()
    job.run_job(root, [run])
    path = record.folder(root, run) / "curve.jsonl"
    rows = curve(root, run)
    path.write_text(path.read_text().replace(str(rows[1]["train_loss"]), "0.5"))
    with pytest.raises(Failed, match=r"curve.jsonl was altered"):
        archive.keep(root, "smoke/trial")


def test_a_damaged_archive_is_one_line(root):
    job.run_job(root, [make_run()])
    archive.keep(root, "smoke/trial")
    path = archive.archive(root, "smoke/trial")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(Failed, match="is damaged"):
        archive.folder(root, "smoke/trial")


def test_a_report_redrawn_from_archives_equals_the_one_drawn_from_results(tmp_path, monkeypatch):
    root = checkout(tmp_path)
    only(monkeypatch, "adam_mini_table1", "adam_mini_fig10")
    write_state_memory(root, "laptop")
    write_losses(root, "laptop")
    for id, header in planning.exhibits(root).items():
        exhibit.make(root, id, "laptop")
        for name in header["experiments"]:
            archive.keep(root, f"laptop/{name}")
    shutil.rmtree(root / "results")
    path = report.make(root, "laptop", {}, "archived")
    assert path == root / "reports/laptop/archived/index.html" and "nothing was trained" in path.read_text()
    for file in ("tables/adam_mini_table1.md", "figures/adam_mini_fig10.svg", "figures/adam_mini_fig10.csv"):
        assert (path.parent / file).read_bytes() == (root / "reports/laptop" / file).read_bytes()
    verdicts = {row["id"]: row["verdict"] for row in read_json(path.parent / "claims.json")}
    assert verdicts["adam_mini_halves_state"] == "reproduced"


def test_without_archives_of_a_tier_a_redraw_says_which_there_are(tmp_path):
    root = checkout(tmp_path)
    with pytest.raises(Misuse, match=r"no records of tier paper are kept .*there: none"):
        report.make(root, "paper", {}, "archived")


@pytest.mark.parametrize("name", archive.names(ROOT))
def test_committed_archives_hold_whole_records_of_planned_runs(name):
    tier, experiment = name.split("/")
    planned = {run["id"] for run in experiments.runs(ROOT, experiment, tier)}
    folder = archive.folder(ROOT, name)
    found = [json.loads(path.read_text()) for path in folder.rglob("record.json")]
    assert found and all(one["id"] in planned for one in found)
    assert [record.integrity_problem(folder.parent / one["id"], one) for one in found] == [None] * len(found)


@pytest.mark.parametrize("unwritable", ["the checkout", "results", "nothing"])
def test_records_of_a_read_only_checkout_are_verified_without_writing_there(root, monkeypatch, capsys, unwritable):
    job.run_job(root, [make_run()])
    archive.keep(root, "smoke/trial")
    shutil.rmtree(root / "results")
    if unwritable == "results":
        (root / "results").mkdir()
    before = sorted(root.rglob("*"))
    real, archive_os = archive.os.access, archive.os
    refused = {"the checkout": root, "results": root / "results", "nothing": None}[unwritable]
    monkeypatch.setattr(archive_os, "access", lambda path, how: path != refused and real(path, how))
    archive.home.cache_clear()
    try:
        assert verify.verify(root, []) == 0 and "1 records: 1 whole" in capsys.readouterr().out
        assert (sorted(root.rglob("*")) == before) == (unwritable != "nothing")
    finally:
        archive.home.cache_clear()
