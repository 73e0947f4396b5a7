"""A dataset whose raw files come from a user's folder."""

import shutil
from pathlib import Path

import yaml

from lowmem.data import fetch

ROOT = Path(__file__).parents[2]


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
