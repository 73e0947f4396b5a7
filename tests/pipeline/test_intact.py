"""What was made and is no longer as it was made is named and asked for again."""

import os
import shutil

import pytest
from tiny import make_root, make_run

from lowmem import kept_files
from lowmem.kept_files import Damaged
from lowmem.pipeline import intact, planning, record
from lowmem.reporting import exhibit, report
from lowmem.reporting.runs import Runs
from lowmem.training import job as train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A root with two finished runs and their done.json."""
    root = make_root(tmp_path_factory.mktemp("finished") / "root")
    runs = [make_run(seed=seed, steps=2) for seed in (0, 1)]
    train.run_job(root, runs)
    planning.write_done(root, runs, root / "results/smoke/trial/done.json")
    return root


@pytest.fixture
def job(finished, tmp_path):
    root = shutil.copytree(finished, tmp_path / "root")
    return root, {"done": "results/smoke/trial/done.json", "runs": [make_run(seed=seed, steps=2) for seed in (0, 1)]}


def test_whole_results_are_left_alone(job):
    root, one = job
    assert intact.mended(root, {"trial": one}, "smoke") == [] and (root / one["done"]).is_file()


def spoil(path, how, other):
    before, content = path.stat(), path.read_bytes()
    at = len(content) // 2
    wrong = {
        "empty": b"",
        "cut": content[: at or 1],
        "one bit": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        "zeros": bytes(len(content)),
        "of another run": other,
    }
    path.unlink() if how == "gone" else path.write_bytes(wrong[how])
    if how != "gone":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


HOW = ["empty", "cut", "one bit", "zeros", "of another run", "gone"]


@pytest.mark.parametrize("name", ["record.json", "curve.jsonl"])
@pytest.mark.parametrize("how", HOW)
def test_a_damaged_record_or_curve_is_asked_for_again_and_only_its_run_is_done_again(job, name, how):
    root, one = job
    folders = [record.folder(root, run) for run in one["runs"]]
    whole = {path.name: path.read_bytes() for path in folders[1].iterdir()}
    spoil(folders[0] / name, how, (folders[1] / name).read_bytes())
    [line] = intact.mended(root, {"trial": one}, "smoke")
    assert "trial/a/seed0" in line and "\n" not in line and not (root / one["done"]).exists()
    train.run_job(root, one["runs"])
    assert {path.name: path.read_bytes() for path in folders[1].iterdir()} == whole
    planning.write_done(root, one["runs"], root / one["done"])
    assert intact.mended(root, {"trial": one}, "smoke") == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '[{"id": "x"}]', "null", "[" * 5000])
def test_a_damaged_summary_is_asked_for_again(job, text):
    root, one = job
    (root / one["done"]).write_text(text)
    assert len(intact.mended(root, {"trial": one}, "smoke")) == 1 and not (root / one["done"]).exists()


def drawn(out):
    shown = exhibit.ExhibitResult("A table.", ["name", "value"], [["a", 1]], {"a": {"value": 1}})
    header = {"id": "toy", "paper": "extra", "label": "Extra", "title": "Toy", "kind": "table"}
    exhibit.write(out, header, shown, Runs([]), "smoke")
    return header


@pytest.mark.parametrize("ending", ["json", "csv", "md", "sha256"])
@pytest.mark.parametrize("how", HOW[:4])
def test_a_damaged_table_is_removed_to_be_made_again_and_not_read_before(tmp_path, ending, how):
    out = tmp_path / "reports/smoke"
    header = drawn(out)
    spoil(out / f"tables/toy.{ending}", how, b"")
    with pytest.raises(Damaged):
        report.load(out, header, None)
    [line] = intact.mended(tmp_path, {}, "smoke")
    assert "toy" in line and list((out / "tables").iterdir()) == []
    drawn(out)
    assert intact.mended(tmp_path, {}, "smoke") == []
    assert report.load(out, header, None)["values"] == {"a": {"value": 1}}


def sealed(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("good")
    kept_files.seal_together(path.with_suffix(""), [path])
    return path


@pytest.mark.parametrize("damaged", ["a record", "a table"])
def test_what_was_made_of_a_damaged_file_goes_with_it_and_nothing_else(job, damaged, monkeypatch):
    root, one = job
    headers = {
        name: {"id": name, "kind": "table", "experiments": [experiment]}
        for name, experiment in (("shown", "trial"), ("other", "another"))
    }
    monkeypatch.setattr(planning, "exhibits", lambda _: headers)
    reports = root / "reports/smoke"
    shown, other = (sealed(reports / f"tables/{name}.md") for name in headers)
    claims, index = sealed(reports / "claims.json"), sealed(reports / "index.html")
    spoil(record.folder(root, one["runs"][0]) / "record.json" if damaged == "a record" else shown, "cut", b"")
    [line] = intact.mended(root, {"trial": {**one, "experiment": "trial"}}, "smoke")
    assert "again" in line and other.is_file()
    assert not shown.exists() and not claims.exists() and not index.exists()
    assert (root / one["done"]).is_file() == (damaged == "a table")
    assert intact.mended(root, {"trial": {**one, "experiment": "trial"}}, "smoke") == []


def test_files_of_a_clone_that_have_no_seal_are_left_alone(tmp_path):
    out = tmp_path / "reports/smoke"
    header = drawn(out)
    kept_files.seal_of(out / "tables/toy").unlink()
    assert intact.mended(tmp_path, {}, "smoke") == []
    assert report.load(out, header, None)["values"] == {"a": {"value": 1}}
