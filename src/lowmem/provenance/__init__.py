"""Which code, data and packages decide a result, and whether they are still what they were.

A Python file is known by a hash of its definitions: its syntax tree without comments, docstrings and import statements,
in which each name is written as the place it comes from (`F.mse_loss` as torch.nn.functional.mse_loss). So comments,
formatting and the order of imports change no hash, and a name that is imported from elsewhere does. Such a hash opens with
"tree:". C sources and data files are known by their sha256, as all files are in older records.

Moves within the package are listed in moved.json as {old: new}: modules and single definitions by their dotted names
(lowmem.blocks.roles, lowmem.tasks.sft.settled), other files by their paths (src/lowmem/...). Hashes use the old names, so a
move leaves earlier records valid.
"""

import ast
import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lowmem import kept_files
from lowmem.errors import Failed
from lowmem.files import read_json, sha256
from lowmem.provenance import syntax

PACKAGE = Path(__file__).parents[1]
# Modules that route runs, files and messages; their effect is in the configuration or in the data's hashes.
ROUTING = tuple(
    f"lowmem.{name}"
    for name in (
        "errors",
        "files",
        "kept_files",
        "files.strict_yaml",
        "files.safe_names",
        "data.schemas",
        "provenance",
        "provenance.neutral",
        "pipeline.record",
        "pipeline.load",
        "progress",
        "pipeline.experiments",
        "pipeline.prerequisites",
        "optim",
        "data.prepare",
    )
)
PACKAGES = ("torch", "numpy", "transformers", "sentencepiece")
TREE = "tree:"


def code_files(config: dict) -> dict[str, str]:
    """{src/lowmem/...: hash} of the modules that this run's task, model and optimizer reach by import."""
    return {name_of(path): code_hash(path) for path in code_paths(config)}


def code_paths(config: dict) -> list[Path]:
    """The files that decide a run's result.

    Read from the source, not from sys.modules, so that a change to one optimizer does not invalidate runs of another
    that happened to share a process.
    """
    return list(_code_paths(tuple(entries(config))))


def entries(config: dict) -> list[str]:
    """The modules that a configuration names, which find each other by name and not in import statements."""
    task = config["task"]
    names = ["training.job", f"tasks.{task}"] + ([] if measures(task) else ["training.loop"])
    if "model" in config:
        names.append(f"models.{config['model']['name']}")
    chosen = [config.get("optimizer"), *(config.get("measure") or {}).get("optimizers", {}).values()]
    chosen = [one for one in chosen if one]
    for one in [*chosen, *(one["beside"] for one in chosen if one.get("beside"))]:
        names += ["optim._factory", f"optim.{one.get('name')}"]
        names += ["optim.core.fused_backward"] * (one.get("backward") is not None)
        names += ["optim.core.combined"] * bool(one.get("beside"))
    return [f"lowmem.{name}" for name in dict.fromkeys(names)]


def measures(task: str) -> bool:
    """Whether a task measures by itself instead of being trained by the loop."""
    path = file_of(f"lowmem.tasks.{task}")
    return path is not None and any(isinstance(s, ast.FunctionDef) and s.name == "measure" for s in tree(path).body)


@functools.cache
def _code_paths(modules: tuple[str, ...]) -> tuple[Path, ...]:
    found = import_closure(filter(None, map(file_of, modules)), ROUTING)
    return tuple(sorted(path for path in found if not is_one_of(path, ROUTING)))


# -- which modules a module needs ------------------------------------------------------------------------------------


def import_closure(entries: Iterable[Path], leaves: tuple[str, ...]) -> set[Path]:
    """`entries` and what they import, directly or not; imports of modules in `leaves` (dotted names) do not count."""
    waiting, found = list(entries), set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [] if is_one_of(path, leaves) else imported(path)
    return found


def is_one_of(path: Path, modules: tuple[str, ...]) -> bool:
    """Whether a file is one of these modules."""
    return path.is_relative_to(PACKAGE) and module_of(path) in modules


@functools.cache
def imported(path: Path) -> list[Path]:
    """Files of this package that a module names in import statements, at top level or inside functions.

    And C sources beside it that it names.
    """
    if path.suffix != ".py":
        return []
    found = [source for source in sorted(path.parent.glob("*.c")) if source.name in path.read_text(encoding="utf-8")]
    for node in syntax.statements(tree(path).body):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        found += [file_of(module) for module in modules if module.startswith("lowmem.") and file_of(module)]
    return found


def tree(path: Path) -> ast.Module:
    """Syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"))


# -- names and moves -------------------------------------------------------------------------------------------------


@functools.cache
def moved() -> dict[str, str]:
    """{old: new} of moved.json. Failed where it is no such file: without it nobody knows which records are whole."""
    path = PACKAGE / "provenance/moved.json"
    try:
        found = read_json(path)
    except Failed as error:
        raise Failed(f"{error}; restore it, e.g. with git checkout") from error
    if not isinstance(found, dict) or not all(isinstance(new, str) for new in found.values()):
        raise Failed(f"{path} is not a map of names; restore it, e.g. with git checkout")
    return found


@functools.cache
def _back() -> dict[str, str]:
    return {new: old for old, new in moved().items()}


def current(name: str) -> str:
    """The current name of a module, or of another file by its path."""
    return moved().get(name, name)


def origin(name: str) -> str:
    """The dotted name of a module or of something in it, as it was before all moves."""
    parts = name.split(".")
    for count in range(len(parts), 1, -1):
        old = _back().get(".".join(parts[:count]))
        if old:
            return ".".join([old, *parts[count:]])
    return name


def file_of(module: str) -> Path | None:
    """The file of a dotted module name of this package; None where there is none."""
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return next((p for p in (place.with_name(f"{place.name}.py"), place / "__init__.py") if p.is_file()), None)


def module_of(path: Path) -> str:
    """The dotted name of a Python file: below the package as it is imported, elsewhere its stem."""
    if not path.is_relative_to(PACKAGE):
        return path.stem
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def name_of(path: Path) -> str:
    """A file of the package as a record names it: src/lowmem/..."""
    return str("src" / path.relative_to(PACKAGE.parent))


def names(root: Path, paths: Iterable[Path]) -> list[str]:
    """Paths as a record names them: relative to the root where they lie below it, e.g. not a user's own questions."""
    paths = [Path(path) for path in paths]
    return [(path.relative_to(root) if path.is_relative_to(root) else path).as_posix() for path in paths]


# -- hashes ----------------------------------------------------------------------------------------------------------


def drifted(root: Path, files: dict[str, str | None]) -> list[str]:
    """The names of a record's files that are no longer what they were, in order; of modules that route it does not matter."""
    deciding = [name for name in files if current(module_of(PACKAGE.parent / name.removeprefix("src/"))) not in ROUTING]
    return [name for name in deciding if not same(root, name, files[name])]


def same(root: Path, name: str, value: str | None) -> bool:
    """Whether a file that a record names still has the hash that it holds, or had it before it moved."""
    if not (value or "").startswith(TREE):
        return hash_of(root, name) == value
    path = PACKAGE.parent / name.removeprefix("src/")
    return (path.is_file() and code_hash(path) == value) or moved_hash(module_of(path)) == value


def hashes(root: Path, paths: Iterable[Path]) -> dict[str, str | None]:
    """{name: sha256} of the files that a run read."""
    return {name: hash_of(root, name) for name in names(root, paths)}


def hash_of(root: Path, name: str) -> str | None:
    """sha256 of a file as it is now, as a record names it: code as src/..., anything else below the root; None without it.

    Of another run's weights, what that run's record says: they may be gone.
    """
    path = PACKAGE.parent / current(name).removeprefix("src/") if name.startswith("src/") else Path(root) / name
    if path.name == "weights.safetensors":
        return weights_hash(root, path)
    return kept_files.sha256(path) if path.is_file() else None


def weights_hash(root: Path, path: Path) -> str | None:
    """The hash of a run's weights by its record below results/, else by an archived one that is unpacked there."""
    below = Path(root) / "results"
    places = [path.parent, *([below / "kept" / path.parent.relative_to(below)] if path.is_relative_to(below) else [])]
    found = next((place / "record.json" for place in places if (place / "record.json").is_file()), None)
    made = read_json(found) if found else None
    weights = made.get("weights") if isinstance(made, dict) else None
    return weights.get("sha256") if isinstance(weights, dict) else None


def code_hash(path: Path) -> str:
    """The hash of a file of code as it is now."""
    return digest(definitions(path)) if path.suffix == ".py" else sha256(path)


def moved_hash(old: str) -> str | None:
    """The hash of what the module `old` defined, collected from where it is today; None when it is nowhere.

    A module that has moved may have lost definitions since, so what counts is the name that it had at first.
    """
    old = origin(old)
    locations = [new for name, new in moved().items() if old in (name, name.rpartition(".")[0])]
    if not locations:
        return None
    paths = {file_of(old), *(file_of(new) or file_of(new.rpartition(".")[0]) for new in locations)} - {None}
    found = [one for path in sorted(paths) for one in definitions(path) if one[0].rpartition(".")[0] == old]
    return digest(found) if found else None


def digest(definitions: list[tuple[str, str]]) -> str:
    """One hash of definitions in the order of their names, so that it does not matter in which order a file has them."""
    ordered = sorted(definitions, key=lambda one: one[0])  # those of one name stay in their order
    return TREE + hashlib.sha256("\n".join(text for _, text in ordered).encode()).hexdigest()


def definitions(path: Path) -> list[tuple[str, str]]:
    """[(dotted name, text)] of a file's statements at top level (syntax.definitions)."""
    about = path.stat()
    return _definitions(path, about.st_mtime_ns, about.st_size)


@functools.cache
def _definitions(path: Path, changed: int, size: int) -> list[tuple[str, str]]:
    return syntax.definitions(tree(path), module_of(path), origin)


# -- what else ran ---------------------------------------------------------------------------------------------------


def commit(root: Path) -> dict:
    """{commit, dirty} of the checkout; null without git. dirty looks at the code, not at data, reports or notes."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--", "src", "workflow", "Snakefile") if head else None
    return {"commit": head, "dirty": None if changes is None else bool(changes)}


def packages() -> dict[str, str | None]:
    """Versions of Python and of the packages that compute; null when not installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions
