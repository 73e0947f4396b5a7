"""Prepared folders that a test fills by hand."""

from pathlib import Path

from lowmem import kept_files
from lowmem.files import sha256


def seal(folder: Path, **about) -> Path:
    """Write the meta.json that lists what is in the folder now, as prepare does last."""
    hashes = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != "meta.json"}
    kept_files.write_json(folder / "meta.json", {**about, "sha256": hashes})
    return folder
