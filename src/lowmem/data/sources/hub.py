"""Text and images from the Hugging Face hub through the `datasets` package, streamed into compressed shards.

A shard is a gzipped file of one JSON string per line, SHARD documents each. After each shard the position in the
stream is written down, so that an interrupted download goes on at the last whole shard.
"""

import base64
import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lowmem.data import image_files
from lowmem.errors import Failed
from lowmem.files import parsed_json, read_json, sha256, write_json

SHARD = 50_000  # documents
LONGEST = 1 << 28  # characters of a row


def get(source: dict, into: Path, work: Path, show: Callable[[int], None]) -> list[str]:
    """Keys: hub (repository, or a local folder of the same layout), config, revision, text (column, or a list),
    splits: {train: {split, max_documents?}, val: ...}, image_size (images are resized to that many pixels per side; default:
    unchanged). The revision is resolved to a commit at the first fetch.
    """
    try:
        import datasets
    except ImportError as error:
        raise Failed("the datasets package is missing; pip install 'lowmem[hub]'") from error
    note = into / ".hub.json"
    asked = {
        key: source.get(key) for key in ("hub", "config", "revision", "text", "splits", "image_size") if key in source
    }
    progress = read_json(note) if note.is_file() else {}
    if progress.get("asked") != asked or not all(
        whole(into / name, pin) for name, pin in finished_shards(progress).items()
    ):
        progress = {"asked": asked, "commit": None, "splits": {}}
    try:
        if progress["commit"] is None and not Path(source["hub"]).is_dir():
            import huggingface_hub

            found = huggingface_hub.HfApi().dataset_info(source["hub"], revision=source.get("revision"))
            progress["commit"] = found.sha
        for split, wanted in source["splits"].items():
            stream = datasets.load_dataset(
                source["hub"],
                source.get("config"),
                split=wanted["split"],
                revision=progress["commit"],
                streaming=True,
            )
            place = progress["splits"].setdefault(split, {"documents": 0, "shards": [], "state": None, "done": False})
            limit = wanted.get("max_documents")
            while not place["done"]:
                path = into / shard_name(split, len(place["shards"]))
                next_shard(stream, source["text"], limit, place, path, show, source.get("image_size"))
                write_json(note, progress)
    except (OSError, Failed):
        raise
    except Exception as error:  # the hub's libraries raise dozens of exception types
        raise Failed(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    source["commit"] = progress["commit"]
    source["files"] = finished_shards(progress)  # fetch.py checks the hashes, also of shards of earlier calls
    return list(source["files"])


def whole(path: Path, pin: dict) -> bool:
    """Whether a shard of an earlier call is intact."""
    return path.is_file() and sha256(path) == pin["sha256"]


def finished_shards(progress: dict) -> dict:
    """{file name: pin} of all shards that are written."""
    pins = {}
    for split, place in progress.get("splits", {}).items():
        pins |= {shard_name(split, i): {"sha256": value, "bytes": None} for i, value in enumerate(place["shards"])}
    return pins


def shard_name(split: str, index: int) -> str:
    """File name of one shard of a split."""
    return f"{split}-{index:05d}.jsonl.gz"


def next_shard(
    stream,
    column: str | list[str],
    limit: int | None,
    place: dict,
    path: Path,
    show: Callable[[int], None],
    size: int | None = None,
) -> None:
    """Write the next SHARD documents and move `place` on; `place["done"]` says that the split or limit has ended."""
    if place["state"] is not None:
        stream.load_state_dict(place["state"])
    wanted = SHARD if limit is None else min(SHARD, limit - place["documents"])
    count, part = 0, path.with_name(f".{path.name}.part")
    with part.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
        for row in stream:
            file.write(json.dumps(kept(row, column, size)).encode() + b"\n")
            count += 1
            if count % 1000 == 0:
                show(raw.tell())
            if count == wanted:
                break
        state = stream.state_dict()
    if count:
        place["shards"].append(sha256(part))
        os.replace(part, path)
    else:
        part.unlink()
    place["documents"] += count
    place["state"] = state
    place["done"] = count < SHARD or place["documents"] == limit


def kept(row: dict, column: str | list[str], size: int | None = None):
    """What is kept of a row: one column as it is, or several as {column: value}, an image as its shape and pixels."""
    return row[column] if isinstance(column, str) else {name: plain(row[name], size) for name in column}


def plain(value, size: int | None = None):
    """An image (anything with `tobytes` and `getbands`) as {shape, pixels in base64}; other values unchanged."""
    if not hasattr(value, "getbands"):
        return value
    value = image_files.fitted(value.convert("RGB"), size) if size else value
    shape = [value.height, value.width, len(value.getbands())]
    return {"shape": shape, "pixels": base64.b64encode(value.tobytes()).decode("ascii")}


def documents(raw: Path, split: str) -> Iterator:
    """What was kept of each row of a split, in order, from the shards of a raw folder."""
    shards = sorted(Path(raw).glob(f"{split}-*.jsonl.gz"))
    if not shards:
        raise Failed(f"no {split}-*.jsonl.gz in {raw}; delete that folder and fetch again")
    for shard in shards:
        with gzip.open(shard, "rt", encoding="utf-8", newline="\n") as file:
            while line := file.readline(LONGEST):
                if len(line) == LONGEST:
                    raise Failed(f"{shard}: a row of more than {LONGEST >> 20} MB; do not use it")
                yield parsed_json(line)
