"""CIFAR-100 read from the hub's layout and from the authors' binary archive: the same arrays."""

import io
import tarfile

import numpy as np
import pytest
import yaml
from synthetic import ROOT

from lowmem.data import fetch, prepare
from lowmem.data.sources import hub

GENERATOR = np.random.default_rng(0)
DATA = {
    split: (GENERATOR.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), GENERATOR.integers(0, 100, count))
    for split, count in (("train", 30), ("test", 7))
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with the real entry and script of the dataset."""
    listed = {"cifar100": yaml.safe_load((ROOT / "data/sources.yaml").read_text())["cifar100"]}
    (tmp_path / "data/cifar100").mkdir(parents=True)
    (tmp_path / "data/cifar100/prepare.py").write_text((ROOT / "data/cifar100/prepare.py").read_text())
    monkeypatch.setattr(hub, "SHARD", 20)
    return tmp_path, listed


def check(folder):
    found = prepare.load_arrays(folder)
    for split, (images, targets) in DATA.items():
        assert (found[f"{split}_images"] == images).all() and found[f"{split}_images"].dtype == np.uint8
        assert (found[f"{split}_labels"] == targets).all()


def test_images_arrive_through_the_hub(root, monkeypatch):
    import datasets

    folder, listed = root
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    features = datasets.Features(
        {"img": datasets.Image(), "fine_label": datasets.Value("int64"), "coarse_label": datasets.Value("int64")}
    )
    for split, (images, targets) in DATA.items():
        rows = {"img": list(images), "fine_label": targets.tolist(), "coarse_label": [0] * len(targets)}
        made = datasets.Dataset.from_dict(rows, features=features)
        (folder / "hub/data").mkdir(parents=True, exist_ok=True)
        made.to_parquet(folder / f"hub/data/{split}-00000-of-00001.parquet")
    listed["cifar100"]["sources"][0]["hub"] = str(folder / "hub")
    (folder / "data/sources.yaml").write_text(yaml.safe_dump(listed))
    raw = fetch.fetch(folder, "cifar100", "hub")
    assert sorted(path.name for path in raw.glob("train-*")) == ["train-00000.jsonl.gz", "train-00001.jsonl.gz"]
    check(prepare.prepare(folder, "cifar100", "hub"))


@pytest.mark.parametrize("packed", [True, False])
def test_images_arrive_through_a_folder_packed_or_not(root, packed):
    folder, listed = root
    (folder / "data/sources.yaml").write_text(yaml.safe_dump(listed))
    mine = folder / "mine"
    mine.mkdir()
    members = {}
    for split, (images, targets) in DATA.items():
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)  # red, green, blue
        rows = np.concatenate([np.zeros((len(images), 1)), targets[:, None], planes], axis=1).astype(np.uint8)
        members[f"{split}.bin"] = rows.tobytes()
    if packed:
        with tarfile.open(mine / "cifar-100-binary.tar.gz", "w:gz") as archive:
            for name, data in members.items():
                about = tarfile.TarInfo(f"cifar-100-binary/{name}")
                about.size = len(data)
                archive.addfile(about, io.BytesIO(data))
    else:
        for name, data in members.items():
            (mine / name).write_bytes(data)
    fetch.fetch(folder, "cifar100", "folder", folder=mine)
    check(prepare.prepare(folder, "cifar100", "folder"))
