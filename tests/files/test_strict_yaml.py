"""Files that people write: what cannot be meant is refused in one line with file and place, in bounded time and memory."""

import json
import resource
import time

import pytest

from lowmem.data import fetch
from lowmem.errors import Failed, Misuse
from lowmem.files import read_json, read_yaml, strict_yaml

BOMB = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12))
ODD = {
    "a day that is none": "seeds: 2020-99-99",
    "an integer that is none": "a: !!int abc",
    "a time that is none": "a: !!timestamp x",
    "5,000 digits": "a: " + "9" * 5000,
    "a key twice": "seeds: [7]\nseeds: [8]",
    "a key twice inside": "a:\n  b: 1\n  c: 2\n  b: 3",
    "not a number": "min_lr: .nan",
    "infinity": "min_lr: [1, -.Inf]",
    "a bomb": BOMB,
    "an alias of itself": "a: &a [*a]",
    "deep": "[" * 3000,
    "deep and closed": "[" * 100 + "]" * 100,
    "deep lists": "- " * 3000 + "x",
    "a tag of another language": "a: !!python/object/apply:os.system [true]",
    "no YAML": "a: [1",
    "tabs": "a:\n\t- b",
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_meant_is_one_line_in_no_time(tmp_path, name):
    path = tmp_path / "x.yaml"
    path.write_text(ODD[name])
    began = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Misuse, match=r"x\.yaml is not valid YAML") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began[1] < 200_000  # kB


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(Misuse, match=r"x\.yaml is not valid YAML"):
        read_yaml(tmp_path / "x.yaml")


def test_the_line_of_a_key_that_stands_twice_is_named():
    with pytest.raises(strict_yaml.InvalidYaml, match="line 4: duplicate key 'b'"):
        strict_yaml.load(ODD["a key twice inside"])


def test_anchors_that_people_use_are_read():
    assert strict_yaml.load("a: &x {b: 1, c: 1.5e-3}\nd: {<<: *x, e: '2020-01-01'}\n")["d"]["b"] == 1


@pytest.mark.parametrize("text", ["[" * 100_000, "NaN", '{"a": Infinity}', '{"a": 1, "a": 2}', "9" * 5000, "", "{"])
def test_json_that_cannot_be_meant_is_one_line(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(Failed, match=r"cannot read .*run\.json") as caught:
        read_json(tmp_path / "run.json", by_hand=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_file_without_end_is_one_line_in_bounded_memory(read):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((Failed, Misuse), match=r"/dev/zero.* MB") as caught:
        read("/dev/zero")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kB


SOURCE = {"url": "https://example.org/", "revision": "1", "files": {"a": {"sha256": None, "bytes": None}}}
BAD_SOURCES = [
    5,
    [1],
    {"set": 5},
    {"set": {"sources": 5}},
    {"set": {"sources": [5]}},
    {"../x": {"sources": []}},
    {"set": {"sources": [{**SOURCE, "files": {"../x": {"sha256": None, "bytes": None}}}]}},
    {"set": {"sources": [{**SOURCE, "files": {"/etc/x": {"sha256": None, "bytes": None}}}]}},
    {"set": {"sources": [{**SOURCE, "files": {"a": {}}}]}},
    {"set": {"sources": [{**SOURCE, "files": {"a": {"sha256": "zz", "bytes": 1}}}]}},
    {"set": {"sources": [{**SOURCE, "files": {"a": {"sha256": None, "bytes": 2.0}}}]}},
    {"set": {"sources": [{**SOURCE, "files": []}]}},
    {"set": {"sources": [{"pip": "a==1", "file": 5}]}},
    {"set": {"sources": [{"url": "ftp://example.org/x"}]}},
    {"set": {"sources": [], "prepare": "../x"}},
    {"set": {"sources": [], "licnce": "x"}},
]


@pytest.mark.parametrize("wrong", BAD_SOURCES)
def test_sources_that_are_none_are_one_line(tmp_path, wrong):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sources.yaml").write_text(json.dumps(wrong))
    with pytest.raises(Misuse, match=r"sources\.yaml") as caught:
        fetch.fetch(tmp_path, "set")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


TEXT = """# a file
a:
  b: [1, {c: 2,
    d: 3}]
e: &many
  - 1
  - f: 4
"""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["a"], 2),
        (["a", "b"], 3),
        (["a", "b", 1, "d"], 4),
        (["e", 1, "f"], 7),
        (["a", "x"], None),
        (["a", "b", 2], None),
        ([], None),
    ],
)
def test_the_line_of_a_value_is_found(keys, line):
    assert strict_yaml.line_of(TEXT, keys) == line
