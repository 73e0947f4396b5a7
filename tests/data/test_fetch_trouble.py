"""Fetching in trouble: every failure is one line, nothing half-written stays, the next call continues."""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
from fake_sources import (
    DATA,
    NPM,
    calls,
    left,
    make_root,
    npm_source,
    pin,
    start,
    url_source,
    wait_for,
)

from lowmem.data import fetch
from lowmem.data.sources import client
from lowmem.errors import Failed


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
        with pytest.raises(Failed, match=r"the disk is full while fetching set .* free 700 kB and call again"):
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
