"""What a newcomer meets: an installed package outside a checkout, editors, type checkers."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lowmem
from lowmem import optim

SRC = Path(lowmem.__file__).parents[1]
WITHOUT = ("yaml", "jsonschema", "snakemake", "matplotlib", "jinja2", "sentencepiece", "transformers")


@pytest.mark.parametrize(
    "command", [["blocks", "gpt2"], ["plan", "gpt2:125m", "--seq-len", "8", "--optimizer", "lomo"]]
)
def test_an_installed_package_plans_in_any_folder_with_pytorch_alone(command, tmp_path):
    package = tmp_path / "site"
    package.mkdir()
    (package / "lowmem").symlink_to(SRC / "lowmem")
    lines = [f"import sys; sys.path.insert(0, {str(package)!r})", f"for m in {WITHOUT}: sys.modules[m] = None"]
    lines += [
        "from lowmem import cli; from lowmem.pipeline import experiments",
        "def never(): raise AssertionError('asked for a checkout')",
    ]
    lines += ["cli.find_root = never", f"sys.exit(cli.main({command}))"]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    environment.pop("LOWMEM_ROOT", None)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout


def test_every_optimizer_names_all_its_settings():
    common = {"model", "no_decay", "rounding", "state_dtype", "nonfinite", "compile", "offload"}
    for name in set(optim.__all__) - {"make", "find", "convert", "FusedBackward"}:
        for of in (getattr(optim, name), getattr(optim, name).__init__):
            parameters = inspect.signature(of).parameters
            assert common <= parameters.keys(), name
            assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values()), name


@pytest.mark.parametrize("module, folder", [(lowmem, SRC / "lowmem"), (optim, SRC / "lowmem" / "optim")])
def test_stubs_show_what_the_package_shows_and_completion_lists_it(module, folder):
    stub = ast.parse((folder / "__init__.pyi").read_text())
    shown = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert shown == set(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    assert (SRC / "lowmem" / "py.typed").exists()
