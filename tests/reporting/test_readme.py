"""The README says what the committed report says, and its code is right."""

import ast
import importlib
import re

import pytest
import torch
from synthetic import ROOT

from lowmem.errors import Misuse
from lowmem.files import read_json
from lowmem.reporting import readme

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCKS = [block for text in PAGES.values() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def test_the_selected_verdicts_are_those_of_the_committed_report():
    assert readme.renewed(ROOT, TEXT) == TEXT, "run `lowmem report --readme`"


def test_the_block_counts_every_claim_and_words_each_verdict_as_the_page_does():
    rows = read_json(ROOT / "docs/reports/overnight/claims.json")
    row = next(row for row in rows if row["verdict"] == "opposite_here")
    text = readme.block(rows, [row["id"]], "Trained here.")
    assert text.startswith(f"Trained here.\n{len(rows)} claims: ")
    assert sum(map(int, re.findall(r"(\d+) (?!claims)", text.splitlines()[1]))) == len(rows)
    assert text.splitlines()[-1].endswith("| opposite here |")
    with pytest.raises(Misuse, match=r"no claim 'adam_mini_halves_stat'.*adam_mini_halves_state"):
        readme.block(rows, ["adam_mini_halves_stat"], "")


def test_what_the_code_blocks_import_exists():
    names = 0
    for block in BLOCKS:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block
                names += len(node.names)
    assert names >= 8


@pytest.mark.parametrize("block", [block for block in BLOCKS if "backward(loss)" in block])
def test_the_recipes_for_a_plain_loop_train(block):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x = torch.randn(16, 4)
    space = {"model": model, "loss": None}
    before = model(x).square().mean().item()
    lines = block.splitlines()
    build = "\n".join(line for line in lines if not line.startswith("optimizer.")) + "\n"
    exec(build, space)
    for _ in range(5):
        space["optimizer"].backward(model(x).square().mean())
        space["optimizer"].step()
    assert model(x).square().mean().item() < before


def test_the_readme_is_short_and_its_code_stands_on_the_first_screen():
    assert len(TEXT.encode()) <= 9_000
    assert TEXT.splitlines().index("```python") < 20


def test_every_link_between_the_pages_leads_somewhere():
    count = 0
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)\s]+)", text):
            if not target.startswith(("http", "#")):
                assert (page.parent / target.partition("#")[0]).exists(), (page.name, target)
                count += 1
    assert count > 40


def test_short_recipes_stay_short():
    assert 4 <= len(BLOCKS) <= 8
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 6 for block in BLOCKS)
