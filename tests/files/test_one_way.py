"""What is kept between runs is written and read in one way: no other module opens, loads or saves such files.

A module that is listed reads something else, and why stands beside it. A new one has to be looked at.
"""

import ast
from pathlib import Path

import lowmem

PACKAGE = Path(lowmem.__file__).parent
NAMES = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "memmap", "fromfile", "tofile"}
DOTTED = {
    "np.load",
    "np.save",
    "torch.load",
    "torch.save",
    "safe_open",
    "ZipFile",
    "load_file",
    "save_file",
    "pickle.load",
}
REASONS = {
    "files/__init__.py": "the ground: atomic writes, JSON and YAML with one-line errors, locks",
    "kept_files.py": "the one way",
    "provenance": "source text of this package",
    "pipeline/model_settings.py": "source text of this package",
    "pipeline/planning.py": "source text of exhibits",
    "data/archives.py": "downloaded archives, whose hash was checked before",
    "data/sources": "downloads in the making; fetch.py checks their hashes",
    "data/prepare.py": "files in the making inside replacing(), and checked ones",
    "data/tokenizers.py": "files of a prepared folder that ready() checked",
    "data/image_files.py": "pictures inside downloaded archives",
    "tasks/superglue.py": "files of a prepared folder that ready() checked",
    "finetuning/dialogues.py": "files of a prepared folder that ready() checked",
    "finetuning/judge.py": "questions and scores that people give",
    "weights/gguf.py": "a file of a prepared folder that ready() checked",
    "weights/lazy_weights.py": "weights that people give, or that training/job.py checked",
    "files/safe_names.py": "the opener that follows no link",
    "reporting/published_check.py": "published values that people wrote",
    "training/checkpoint.py": "torch's format; bytes go through kept_files",
    "training/checkpoint_metadata.py": "a table of contents whose hash sharded_checkpoint.py checked",
    "training/loop.py": "the curve, line by line; its hash stands in the checkpoint and in the record",
    "training/job.py": "train.log, which nobody reads back",
    "pipeline/record.py": "arrays and curves after kept_files.check; weights in safetensors' format",
    "pipeline/archive.py": "archives, unpacked and compared by their hashes",
    "pipeline/intact.py": "done.json, which is compared with the records",
    "vision/reference_networks.py": "weights that training/job.py checked",
    "reporting/report.py": "tables and pictures after kept_files.check_together, and the page's template",
    "reporting/readme.py": "the README",
    "memory/cells_page.py": "the README",
    "memory/measured_cells.py": "the configuration of a model in a folder that is thrown away",
    "analysis/hessian.py": "/proc",
    "training/usage.py": "/proc",
    "training/machine.py": "/proc",
    "memory/measured_peak.py": "/proc",
    "optim/core/kernel_build.py": "the compiled kernel, which it checks itself",
}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def opens(path: Path) -> set[str]:
    """The calls of a module that open, load or save files."""
    found = {called(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    own = {name for name in found if name == "open" or ("." in name and name.split(".")[-1] in NAMES)}
    own |= {name for name in found if any(name == dotted or name.endswith(f".{dotted}") for dotted in DOTTED)}
    return {name for name in own if not name.startswith(("self.", "files.", "kept_files."))}


def reason(name: str) -> str | None:
    return next((why for place, why in REASONS.items() if name == place or name.startswith(f"{place}/")), None)


def test_no_other_module_opens_files():
    others = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if reason(name) is None and (found := opens(path)):
            others[name] = found
    assert others == {}


def test_every_reason_is_still_needed():
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    for place in REASONS:
        own = [path for name, path in files.items() if name == place or name.startswith(f"{place}/")]
        assert any(opens(path) for path in own), place
