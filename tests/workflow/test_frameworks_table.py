"""The table of frameworks in docs: every tick names a test that there is; examples are short and named."""

import ast
import re
from pathlib import Path

import pytest
from run_example import ROOT, SCRIPTS

COLUMNS = ["framework", "optimizer", "step", "clip", "save, resume", "reshard", "offload"]
LONGER = {"finetune_7b_24gb.py": 60}  # lines: a whole training, with data, checkpoints and resume
CLASSES = {"Adam-mini": "AdamMini", "LOMO": "Lomo"}


def rows() -> list[list[str]]:
    lines = [line.strip() for line in (ROOT / "docs/frameworks.md").read_text(encoding="utf-8").splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("| framework | optimizer |"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    assert table[0] == COLUMNS
    return table[2:]


def test_each_tick_names_an_existing_test_of_that_optimizer():
    ticks = 0
    for framework, optimizer, *cells in rows():
        assert optimizer in CLASSES
        for column, cell in zip(COLUMNS[2:], cells, strict=True):
            where = (framework, optimizer, column)
            assert cell, where
            if "✓" not in cell:
                assert len(cell) > 3, f"{where}: says neither yes nor why not"
                continue
            path, name = re.search(r'\[✓\]\(\.\./(tests/\S+\.py) "(test_\w+)"\)', cell).groups()
            source = (ROOT / path).read_text(encoding="utf-8")
            functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
            assert name in functions, (where, name)
            assert not any(
                "skip" in ast.unparse(d) or "xfail" in ast.unparse(d) for d in functions[name].decorator_list
            )
            named = (CLASSES[optimizer], optimizer.lower().replace("-", "_"), "zoo.")  # zoo has all optimizers
            assert any(word in source for word in named), where
            ticks += 1
    assert ticks > 30


def test_every_framework_has_a_row_for_both_optimizers():
    pairs = [(framework, optimizer) for framework, optimizer, *_ in rows()]
    assert len(pairs) == len(set(pairs))
    assert (
        {framework for framework, _ in pairs}
        == {f for f, o in pairs if o == "LOMO"}
        == {f for f, o in pairs if o == "Adam-mini"}
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_examples_are_short_say_how_to_run_them_and_are_run_by_a_test(script: Path):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGER.get(script.name, 40)
    assert f"examples/{script.name}" in ast.get_docstring(ast.parse(text))
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*/test_*.py")]
    assert any(f'losses("{script.name}"' in test for test in tests)
