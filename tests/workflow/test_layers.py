"""Who may import whom: packages stand on each other in layers, and files stay short."""

import ast
import graphlib
import io
import re
import tokenize
from pathlib import Path

import pytest

from lowmem.provenance import syntax

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/lowmem"
# What each package may import, besides itself and the ground; each names only those above it. The package's own
# `lowmem/__init__.py` gives users `lowmem.partition` and counts as `lowmem`.
GROUND = {"errors", "files", "progress", "distributed", "kept_files", "provenance"}
MAY_IMPORT = {
    "blocks": set(),
    "lowmem": {"blocks"},
    "optim": {"blocks"},
    "models": set(),
    "data": set(),
    "pipeline": {"data", "optim"},
    "weights": {"data", "models", "optim"},
    "training": {"optim", "pipeline", "weights"},
    "analysis": {"blocks", "data"},
    "memory": {"analysis", "models", "optim", "pipeline", "training"},
    "finetuning": {"data", "models", "pipeline", "training", "weights"},
    "vision": {"data", "models"},
    "tasks": {
        "analysis", "blocks", "data", "finetuning", "lowmem", "memory", "models", "optim", "training", "vision", "weights",
    },
    "reporting": {"analysis", "data", "finetuning", "lowmem", "pipeline"},
    "exhibits": {"analysis", "data", "finetuning", "memory", "reporting"},
    "integrations": {"blocks", "optim"},
    "compat": {"blocks", "optim"},
    "cli": {"blocks", "data", "finetuning", "lowmem", "memory", "models", "pipeline", "reporting", "training"},
    "__main__": {"cli"},
}  # fmt: skip
LINES = 300
FILES = 10


def module_of(path: Path) -> str:
    """lowmem.blocks.roles of src/lowmem/blocks/roles.py."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules of this package that a file names in import statements, at top level or inside functions."""
    found = set()
    for node in syntax.statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: an import names the whole path"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inside}
    return found & MODULES.keys()


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "lowmem"


ARROWS = {(module, other) for module, path in MODULES.items() for other in imports(path)}


def test_each_package_imports_only_what_the_table_allows():
    between = {(package_of(a), package_of(b)) for a, b in ARROWS if package_of(a) != package_of(b)}
    assert len(between) > 50
    wrong = [(a, b) for a, b in sorted(between) if a in GROUND and b not in GROUND]
    wrong += [(a, b) for a, b in sorted(between) if a not in GROUND and b not in MAY_IMPORT[a] | GROUND]
    assert wrong == [], [arrow for arrow in sorted(ARROWS) if tuple(map(package_of, arrow)) in wrong]


def test_the_table_names_every_package_after_those_that_it_may_import():
    assert MAY_IMPORT.keys() | GROUND == {package_of(module) for module in MODULES}
    above = set()
    for package, allowed in MAY_IMPORT.items():
        assert allowed <= above, f"{package} may import {sorted(allowed - above)}, which stand below it"
        above.add(package)


def test_contributing_lists_the_packages_in_this_order_and_tests_mirror_them():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("| package |")[1].split("\n\n")[0]
    rows = [re.findall(r"`(\w+)/`", line.split("|")[1]) for line in table.splitlines()[2:]]
    above = set(GROUND)
    for row in rows:
        for package in row:
            assert MAY_IMPORT.get(package, set()) - {"lowmem"} <= above, package
        above |= set(row)
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert above - GROUND | {"files", "provenance"} == folders
    tests = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders - tests == {"integrations"} and tests >= {"frameworks", "titan"}


def cycle(arrows: set[tuple[str, str]]) -> list[str]:
    """Modules that import each other in a ring, the first one once more at the end; empty without a ring."""
    order = graphlib.TopologicalSorter()
    for module, other in sorted(arrows):
        order.add(module, other)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_a_ring_of_imports_is_found():
    assert cycle({("a", "b"), ("b", "c"), ("a", "c")}) == []
    assert set(cycle({("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")})) == {"a", "b", "c"}


def test_no_modules_import_each_other_in_a_ring_not_even_inside_functions():
    assert cycle(ARROWS) == []


def test_few_modules_lie_outside_packages():
    files = [path.name for path in PACKAGE.glob("*.py")]
    assert len(files) <= FILES, sorted(files)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_each_package_says_in_one_line_what_lives_there(path):
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    assert len(first) > 20 and first.endswith(".")
    assert {p.parent for p in path.parent.glob("*.py")} == {path.parent}


def code_lines(text: str) -> int:
    """Lines that hold code: no empty ones, comments or docstrings."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        is_block = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if is_block and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_lines_of_code_are_counted_without_empty_ones_comments_and_docstrings():
    text = '"""What."""\nimport os  # here\n# a remark\n'
    text += 'def f(x):\n    """More.\n\n    Of it."""\n    return [\n        x,\n    ]\n'
    assert code_lines(text) == 5


def test_files_stay_short():
    folders = ("src", "tests", "benchmarks", "examples", "docs", "data")
    counts = {path: code_lines(path.read_text(encoding="utf-8")) for f in folders for path in (ROOT / f).rglob("*.py")}
    for path in PACKAGE.rglob("*.c"):
        bare = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        counts[path] = sum(bool(line.strip()) for line in bare.splitlines())
    assert {str(path.relative_to(ROOT)): n for path, n in counts.items() if n > LINES} == {}
