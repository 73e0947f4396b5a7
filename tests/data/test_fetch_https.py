"""Fetching over https: verified, resumable, whole or absent."""

import pytest
from fake_sources import DATA, SHA, left, make_root, pin, url_source

from lowmem.data import fetch
from lowmem.data.sources import url
from lowmem.errors import Failed


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
    root = make_root(tmp_path, url_source(server, sha256=None, bytes=None, revision="main"), content_sha256=SHA)
    with pytest.raises(Failed):
        fetch.fetch(root, "set", "url")
    server.cut, server.etag = None, '"v2"'
    server.files["/set.bin"] = DATA[::-1]
    raw = fetch.fetch(root, "set", "url")
    assert (raw / "set.bin").read_bytes() == DATA[::-1]
    assert (
        f"the content of set.bin is pinned, and not its sha256, which is {pin(DATA[::-1])['sha256']}"
        in capsys.readouterr().err
    )
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
