"""The table of contents of a sharded checkpoint (.metadata), read without running anything that is in it.

PyTorch keeps it as a pickle and loads it as one, so that whoever may write the file may run code. Here only the classes
that PyTorch writes there are rebuilt, and values that are not tensors are read with weights_only=True.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata

from lowmem.kept_files import Damaged

CLASSES = ("Metadata", "StorageMeta", "TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata")
CLASSES += ("TensorProperties", "MetadataIndex", "_MEM_FORMAT_ENCODING")
ALLOWED = {
    **{f"{metadata.__name__}.{name}": getattr(metadata, name) for name in CLASSES},
    f"{filesystem.__name__}._StorageInfo": filesystem._StorageInfo,
    "torch.Size": torch.Size,
    "torch.serialization._get_layout": torch.serialization._get_layout,
    **{f"{module}.PosixPath": lambda *parts: "/".join(map(str, parts)) for module in ("pathlib", "pathlib._local")},
}


class Unpickler(pickle.Unpickler):
    """Reads the metadata of a sharded checkpoint: its own classes, PyTorch's dtypes, and nothing else."""

    def find_class(self, module: str, name: str):
        found = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(found, torch.dtype):
            return found
        try:
            return ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint holds") from None


class Reader(dcp.FileSystemReader):
    """FileSystemReader whose files are named beforehand. folder: the checkpoint; names: the files that it consists of."""

    def __init__(self, folder: Path, names: set[str]):
        super().__init__(folder)
        self.folder, self.names = folder, names

    def read_metadata(self, *args, **kwargs) -> metadata.Metadata:
        path = self.folder / ".metadata"
        try:
            found = Unpickler(io.BytesIO(path.read_bytes())).load()
            places = {place.relative_path for place in found.storage_data.values()}
            known = isinstance(found, metadata.Metadata) and places <= self.names
        except Exception as error:  # a damaged pickle raises nearly anything
            raise Damaged(path, f"is not read: {' '.join(str(error).split())[:200]}") from error
        if not known:
            raise Damaged(path, "is not read: it names files that are not part of the checkpoint")
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


class Planner(dcp.DefaultLoadPlanner):
    """Loads as PyTorch does, but reads bytes as data alone."""

    def load_bytes(self, read_item, value: io.BytesIO) -> None:
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)  # raises for anything but plain data
        plain.seek(0)
        super().load_bytes(read_item, plain)
