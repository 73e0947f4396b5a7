"""Names that become paths: plain ones are taken, all others refused before anything is written or removed."""

import json
import os

import pytest
from tiny import environment, make_root, make_run

from lowmem.cli import main
from lowmem.data import fetch
from lowmem.errors import Failed, Misuse
from lowmem.files import locked, safe_names
from lowmem.pipeline import archive, planning, record
from lowmem.training import job

BAD = [
    "",
    ".",
    "..",
    "../x",
    "/etc/x",
    "a/b",
    "a\\b",
    ".hidden",
    "-rf",
    "a b",
    "a\n",
    "a\0",
    "x" * 200,
    "é",
    5,
    None,
    ["a"],
]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_plain_name_is_refused_in_one_line(name):
    with pytest.raises(Misuse, match="not a plain name") as caught:
        safe_names.part(name, "tier")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["gpt2_sizes", "14k-min-1e.2", "superglue_boolq@folder", "1e-3", "a+b"])
def test_names_of_the_repository_are_plain(name):
    assert safe_names.part(name, "tier") == name


@pytest.mark.parametrize("name", ["~nobody-here/x", "x" * 3000, "a\0b", "/".join(["abc"] * 2000)])
def test_a_folder_that_can_be_none_is_refused_in_one_line(name):
    with pytest.raises(Misuse, match=r"home folder|not a folder name") as caught:
        safe_names.at_home(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("key", ["experiment", "variant", "tier"])
@pytest.mark.parametrize("name", ["../../../outside/x", "/tmp/outside", "..", "a/../../../b", 5, "x" * 5000, "a\0b"])
def test_a_run_file_writes_nothing_outside_results(tmp_path, monkeypatch, capsys, key, name):
    root = make_root(tmp_path / "root")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "record.json").write_text("mine")
    monkeypatch.setenv("LOWMEM_ROOT", str(root))
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"config": make_run()["config"], key: name}))
    before = sorted(p for p in tmp_path.rglob("*"))
    assert main(["train", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(p for p in tmp_path.rglob("*")) == before and (outside / "record.json").read_text() == "mine"


def test_a_link_out_of_results_is_not_followed(tmp_path):
    root, run = make_root(tmp_path / "root"), make_run(steps=2)
    (tmp_path / "outside").mkdir()
    (root / "results/smoke").mkdir(parents=True)
    (root / "results/smoke/trial").symlink_to(tmp_path / "outside")
    with pytest.raises(Misuse, match="leads out of"):
        job.run_job(root, [run])
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", [".seed0.lock", "curve.jsonl", "record.json"])
def test_a_planted_link_empties_nothing(tmp_path, name):
    root, run = make_root(tmp_path / "root"), make_run(steps=2)
    folder = record.folder(root, run)
    folder.mkdir(parents=True)
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("mine")
    (folder.parent / name if name.endswith("lock") else folder / name).symlink_to(thesis)
    try:
        with locked(folder):
            job.run_job(root, [run])
    except Failed as error:
        assert "it is a link" in str(error)
    assert thesis.read_text() == "mine"


def test_the_log_of_an_unforeseen_error_replaces_a_planted_link(tmp_path, monkeypatch):
    root, run = make_root(tmp_path / "root"), make_run(steps=2)
    folder, thesis = record.folder(root, run), tmp_path / "thesis.tex"
    folder.mkdir(parents=True)
    thesis.write_text("mine")
    (folder / "train.log").symlink_to(thesis)
    monkeypatch.setattr("lowmem.tasks.pretrain.build", lambda *_: 1 / 0)
    assert job.run_job(root, [run]) == 1
    assert thesis.read_text() == "mine" and "ZeroDivisionError" in (folder / "train.log").read_text()


def test_a_lock_keeps_what_lies_in_its_place(tmp_path):
    (tmp_path / ".seed0.lock").write_text("mine")
    with locked(tmp_path / "seed0"):
        assert (tmp_path / ".seed0.lock").read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "laptop", "laptop/../../x", "laptop/a/b"])
def test_archives_are_named_by_tier_and_experiment(tmp_path, name):
    with pytest.raises(Misuse, match="not a plain name"):
        archive.keep(tmp_path, name)


# -- a folder of the user's --------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/data").mkdir(parents=True)
    (tmp_path / "root/data/sources.yaml").write_text("set: {about: '', licence: '', sources: []}\n")
    return tmp_path / "root"


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "how", ["the target", "a link to the target", "in the target", "above the target", "target a link"]
)
def test_a_folder_that_is_holds_or_lies_in_the_target_is_refused_and_stays(root, tmp_path, how):
    target = root / "data/raw/set@folder"
    if how == "target a link":
        mine = tmp_path / "mine"
        mine.mkdir()
        target.parent.mkdir(parents=True)
        target.symlink_to(mine)
    else:
        target.mkdir(parents=True)
        mine = target
    (mine / "sub").mkdir()
    (mine / "train.jsonl").write_text("1")
    (mine / "sub/val.jsonl").write_text("2")
    folder = {"in the target": mine / "sub", "above the target": root}.get(how, mine)
    if how == "a link to the target":
        folder = tmp_path / "link"
        folder.symlink_to(mine)
    before = files(tmp_path)
    for _ in range(2):
        with pytest.raises(Misuse, match=r"about to be replaced|leads out"):
            fetch.fetch(root, "set", "folder", folder)
        after = {name: data for name, data in files(tmp_path).items() if not name.endswith(".lock")}
        assert after == {name: data for name, data in before.items() if not name.endswith(".lock")}


@pytest.mark.parametrize("second", ["a typo", "an empty one"])
def test_a_second_folder_that_is_wrong_leaves_the_first_copy(root, tmp_path, second):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "train.jsonl").write_text("1")
    raw = fetch.fetch(root, "set", "folder", mine)
    before = files(raw)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Misuse, match=r"not a folder|no files"):
        fetch.fetch(root, "set", "folder", tmp_path / ("typo" if second == "a typo" else "empty"))
    assert files(raw) == before and fetch.fetch(root, "set", "folder") == raw


def test_an_empty_name_of_a_folder_is_refused(root, monkeypatch, capsys):
    monkeypatch.setenv("LOWMEM_ROOT", str(root))
    assert main(["fetch", "set", "--source", "folder", "--folder", ""]) == 2
    assert "the name of the folder is empty" in capsys.readouterr().err


def test_a_raw_folder_carried_from_another_machine_is_taken_without_its_note(root, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "train.jsonl").write_text("1")
    (mine / "fetched.json").write_text("{}")
    raw = fetch.fetch(root, "set", "folder", mine)
    assert json.loads((raw / "fetched.json").read_text())["files"].keys() == {"train.jsonl"}
    assert fetch.fetch(root, "set", "folder") == raw


# -- the edge ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocked", ["results is a file", "seed0 is a file", "record.json is a folder"])
def test_what_lies_in_the_way_is_one_line(tmp_path, monkeypatch, capsys, blocked):
    root, run = make_root(tmp_path / "root"), make_run(steps=2)
    folder = record.folder(root, run)
    if blocked == "results is a file":
        (root / "results").write_text("")
    elif blocked == "seed0 is a file":
        folder.parent.mkdir(parents=True)
        folder.write_text("")
    else:
        (folder / "record.json/x").mkdir(parents=True)
    monkeypatch.setattr(planning, "read_run", lambda *_: run)
    monkeypatch.setenv("LOWMEM_ROOT", str(root))
    assert main(["train", "run.json"]) == 1
    said = capsys.readouterr().err
    assert "cannot" in said and "Traceback" not in said


@pytest.mark.parametrize("name, value", [("WORLD_SIZE", "x"), ("WORLD_SIZE", "-1"), ("WORLD_SIZE", "1.5")])
def test_a_variable_of_torchrun_that_is_no_number_is_one_line(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(Misuse, match=r"WORLD_SIZE is .* must be a whole number"):
        job.run_job(make_root(tmp_path / "root"), [make_run()])


def test_variables_of_torchrun_left_in_the_shell_are_one_line(tmp_path, monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(Misuse, match="start them with torchrun, or unset it"):
        job.run_job(make_root(tmp_path / "root"), [make_run()])


def test_many_locks_fit_into_few_open_files(tmp_path):
    import subprocess
    import sys

    script = (
        "import contextlib, resource, sys; from pathlib import Path\n"
        "from lowmem import files; from lowmem.cli import commands\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "commands.more_open_files(288)\n"
        "with contextlib.ExitStack() as stack:\n"
        "    for k in range(288): stack.enter_context(files.locked(Path(sys.argv[1]) / str(k)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(tmp_path)) == 288
