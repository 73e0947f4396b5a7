"""Sources of a dataset that tests control: package clients that are small scripts, and a file server on this machine."""

import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from lowmem.data.sources import url

ROOT = Path(__file__).parents[2]
DATA = os.urandom(700_000)
SHA = hashlib.sha256(DATA).hexdigest()


def pin(data=DATA):
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def make_root(tmp_path, *sources, name="set", **more):
    (tmp_path / "data").mkdir(exist_ok=True)
    entry = {"about": "test", "licence": "none", "sources": list(sources), **more}
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
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
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


CHILD = """
import sys
from pathlib import Path
from lowmem.data import fetch
from lowmem.data.sources import url
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
