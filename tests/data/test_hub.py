"""Datasets from the hub, read from a local folder of the same layout: streamed, sharded, resumed, tokenised."""

import gzip
import json
import types
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import yaml

from lowmem.data import fetch, prepare
from lowmem.data.sources import hub
from lowmem.errors import Failed

ROOT = Path(__file__).parents[2]
TEXTS = [f"page {i}: " + "all work and no play " * (i % 7) for i in range(2503)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root whose openwebtext and c4 come from folders with the hub's file layouts (parquet is read the same way)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "SHARD", 1000)
    pages = tmp_path / "hub"
    for split, texts in (("train", TEXTS), ("validation", TEXTS[:10])):
        (pages / "data").mkdir(parents=True, exist_ok=True)
        with gzip.open(pages / "data" / f"{split}-00000.json.gz", "wt") as file:
            file.writelines(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts)
    listed = {}
    for name in ("openwebtext", "c4"):
        entry = yaml.safe_load((ROOT / "data/sources.yaml").read_text())[name]
        [source] = entry["sources"]
        source |= {"hub": str(pages), "config": None}
        listed[name] = entry
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "prepare.py").write_text((ROOT / "data" / name / "prepare.py").read_text())
    listed["c4"]["sources"][0]["splits"] = {
        "train": {"split": "train", "max_documents": 1500},
        "val": {"split": "validation", "max_documents": 5},
    }
    (tmp_path / "data/sources.yaml").write_text(yaml.safe_dump(listed))
    return tmp_path


def test_every_document_arrives_in_order_in_shards(root):
    raw = fetch.fetch(root, "openwebtext", "hub")
    assert list(hub.documents(raw, "train")) == TEXTS
    names = sorted(path.name for path in raw.iterdir())
    assert names == [
        ".hub.json",
        "fetched.json",
        "train-00000.jsonl.gz",
        "train-00001.jsonl.gz",
        "train-00002.jsonl.gz",
    ]


def test_an_interrupted_stream_goes_on_at_the_last_whole_shard(root, monkeypatch):
    whole = fetch.fetch(root, "openwebtext", "hub")
    wanted = {path.name: path.read_bytes() for path in whole.glob("*.gz")}
    fetch.clear(whole)
    real, begun = hub.next_shard, []

    def breaks(stream, column, limit, place, path, *others):
        begun.append(path.name)
        if len(begun) == 3:
            raise ConnectionError("the line went dead")
        real(stream, column, limit, place, path, *others)

    monkeypatch.setattr(hub, "next_shard", breaks)
    with pytest.raises(Failed, match="the line went dead"):
        fetch.fetch(root, "openwebtext", "hub")
    assert not (whole / "fetched.json").exists()
    fetch.fetch(root, "openwebtext", "hub")
    assert begun == [f"train-0000{i}.jsonl.gz" for i in (0, 1, 2, 2)]
    assert {path.name: path.read_bytes() for path in whole.glob("*.gz")} == wanted


def test_a_deleted_note_costs_no_download_but_a_damaged_shard_does(root, monkeypatch):
    raw = fetch.fetch(root, "openwebtext", "hub")
    real, begun = hub.next_shard, []

    def counted(stream, column, limit, place, path, *others):
        begun.append(path.name)
        real(stream, column, limit, place, path, *others)

    monkeypatch.setattr(hub, "next_shard", counted)
    (raw / "fetched.json").unlink()
    fetch.fetch(root, "openwebtext", "hub")
    assert begun == []
    (raw / "train-00001.jsonl.gz").write_bytes(b"damaged")
    fetch.fetch(root, "openwebtext", "hub")
    assert len(begun) == 3 and list(hub.documents(raw, "train")) == TEXTS


def test_a_limit_on_documents_is_kept_and_part_of_what_was_fetched(root):
    raw = fetch.fetch(root, "c4", "hub")
    assert list(hub.documents(raw, "train")) == TEXTS[:1500]
    assert list(hub.documents(raw, "val")) == TEXTS[:5]
    listed = yaml.safe_load((root / "data/sources.yaml").read_text())
    listed["c4"]["sources"][0]["splits"]["train"]["max_documents"] = 7
    (root / "data/sources.yaml").write_text(yaml.safe_dump(listed))
    fetch.fetch(root, "c4", "hub")
    assert list(hub.documents(raw, "train")) == TEXTS[:7]


def test_every_two_thousandth_page_is_held_out(root):
    folder = prepare.prepare(root, "openwebtext", "hub", "byte")
    assert folder.name == "openwebtext@hub-byte"
    assert bytes(prepare.load_tokens(folder, "val")).decode() == TEXTS[0] + "\n\n" + TEXTS[2000] + "\n\n"
    assert prepare.load_tokens(folder, "train").size == sum(len(text) + 2 for text in TEXTS[1:2000] + TEXTS[2001:])


@pytest.mark.parametrize("revision", ["main", "a" * 40])
def test_a_revision_is_resolved_to_a_commit_once_and_that_commit_is_read_and_recorded(root, monkeypatch, revision):
    commit, asked = ("b" if revision == "main" else "a") * 40, []
    listed = yaml.safe_load((root / "data/sources.yaml").read_text())
    [source] = listed["openwebtext"]["sources"]
    pages, load = source["hub"], datasets.load_dataset
    source |= {"hub": "somebody/pages", "revision": revision}
    (root / "data/sources.yaml").write_text(yaml.safe_dump(listed))

    class Api:
        def dataset_info(self, name, revision):
            asked.append((name, revision))
            return types.SimpleNamespace(sha=commit)

    def load_here(name, config, *, revision, **settings):
        assert (name, revision) == ("somebody/pages", commit)
        return load(pages, config, **settings)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_here)
    raw = fetch.fetch(root, "openwebtext", "hub")
    assert json.loads((raw / "fetched.json").read_text())["source"]["commit"] == commit
    (raw / "fetched.json").unlink()  # a call that was interrupted goes on with the commit it began with
    fetch.fetch(root, "openwebtext", "hub")
    assert asked == [("somebody/pages", revision)]


def test_a_hub_that_cannot_be_reached_is_one_line(root):
    listed = yaml.safe_load((root / "data/sources.yaml").read_text())
    listed["c4"]["sources"][0]["hub"] = "nobody/nothing"
    (root / "data/sources.yaml").write_text(yaml.safe_dump(listed))
    with pytest.raises(Failed, match="cannot fetch c4; tried hub nobody/nothing: ") as failure:
        fetch.fetch(root, "c4", "hub")
    assert "\n" not in str(failure.value)
