"""A hundred answers of a hostile server: no wrong pinned file, one line each, then the next source is asked."""

import contextlib
import random
import socketserver
import threading

import pytest
from campaign_counts import hold
from fake_sources import DATA, make_root, url_source

from lowmem.data import fetch
from lowmem.data.sources import url
from lowmem.errors import Failed

CASES = 100
STATUS = [
    "200 OK",
    "200 \x1b[31mred",
    "204 No",
    "206 Partial",
    "301 Moved",
    "302 F",
    "307 T",
    "404 \x07",
    "416 R",
    "500 E",
    "xyz",
    "-1",
]
PLACES = [
    "https://[::1/x",
    "http://a..b/",
    f"http://{'a' * 70}/",
    "file:///etc/passwd",
    "/set.bin",
    "",
    "\x00",
    "http://[",
    "//:99999999/",
]
LENGTHS = ["0", "-5", "abc", "9" * 5000, "1", "700000", "700001", "1e3", "1" * 15]
RANGES = ["bytes 5-9/10", "bytes */0", "bytes 0-699999/700000", "x", "bytes 999999-1/*"]
ENCODINGS = ["gzip", "br", "identity", "\x1b]0;x\x07"]
BODIES = [
    b"",
    b"x",
    bytes(700_000),
    DATA[:-1],
    DATA[::-1],
    DATA + b"x",
    b"\x1f\x8b" + bytes(50),
    DATA,
]  # the last is right


def answer(chance: random.Random) -> bytes:
    """Bytes that a server may send: a status, some headers with odd values, a body; now and then no HTTP at all."""
    if chance.random() < 0.08:
        return chance.choice(
            [b"", b"\x00" * 300, b"HTTP/1.1 ", b"A" * 70_000, b"HTTP/1.1 200 OK\r\n" + b"H: x\r\n" * 150 + b"\r\n"]
        )
    lines = [f"HTTP/1.1 {chance.choice(STATUS[:1] * 8 + STATUS)}"]
    for name, values in {
        "Location": PLACES,
        "Content-Length": LENGTHS,
        "Content-Range": RANGES,
        "Content-Encoding": ENCODINGS,
    }.items():
        if chance.random() < (0.9 if name == "Location" else 0.35):
            lines.append(f"{name}: {chance.choice(values)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + chance.choice(BODIES)


class Hostile(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(65536)
        with contextlib.suppress(OSError):  # the client had enough
            self.request.sendall(self.server.answer)


@pytest.fixture
def hostile():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Hostile) as running:
        running.daemon_threads, running.answer = True, b""
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_answer_of_a_hostile_server_gives_a_wrong_file_or_a_traceback(tmp_path, hostile, server, monkeypatch):
    monkeypatch.setattr(url.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(url, "TIMEOUT", 5)
    chance = random.Random(28)
    counts = {"answers": CASES, "right files": 0, "in one line": 0, "then right from the next source": 0}
    bad = url_source(server, url=f"http://127.0.0.1:{hostile.server_address[1]}/set.bin")
    for number in range(CASES):
        hostile.answer = answer(chance)
        root = tmp_path / str(number)
        root.mkdir()
        try:
            raw = fetch.fetch(make_root(root, bad), "set", "url")
            assert (raw / "set.bin").read_bytes() == DATA
            counts["right files"] += 1
        except Failed as error:
            assert str(error).isprintable() and len(str(error)) < 1500, hostile.answer[:200]
            assert not (root / "data/raw/set@url/set.bin").exists()
            counts["in one line"] += 1
        raw = fetch.fetch(make_root(root, bad, url_source(server)), "set")
        assert (raw / "set.bin").read_bytes() == DATA
        counts["then right from the next source"] += 1
    what = "answers of a server that means harm: odd statuses, headers and bodies, each alone and before a good source"
    hold("server", what, counts, "none gives a wrong pinned file or a traceback")
