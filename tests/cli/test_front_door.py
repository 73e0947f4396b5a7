"""What a newcomer meets: an installed package outside a checkout, editors, type checkers."""

import ast
import inspect
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
import torch

import lowmem
from lowmem import cli, optim

SRC = Path(lowmem.__file__).parents[1]
ROOT = SRC.parent
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


@pytest.mark.parametrize("arguments", [["--gpu", "t4"], ["--json"], ["--lora", "8"], ["--zero", "2"], ["--markdown"]])
def test_what_is_about_a_model_is_not_answered_about_a_tier(arguments, capsys):
    assert cli.main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert f"{arguments[0]} is about a model; name one" in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_wheel_alone_explains_itself_and_names_what_a_plan_needs_and_plans_where_pytorch_is(tmp_path):
    def run(*command, **environment):
        of_its_own = {key: x for key, x in os.environ.items() if key not in ("PYTHONPATH", "LOWMEM_ROOT")} | environment
        return subprocess.run(command, cwd=tmp_path, env=of_its_own, capture_output=True, text=True, check=False)

    (tmp_path / "copy").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "copy")
    shutil.copytree(ROOT / "src/lowmem", tmp_path / "copy/src/lowmem", ignore=shutil.ignore_patterns("__pycache__"))
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "made", tmp_path / "copy"]
    assert (done := run(sys.executable, "-m", "pip", *wheel)).returncode == 0, done.stderr
    (made,) = (tmp_path / "made").glob("*.whl")
    venv.create(tmp_path / "venv", symlinks=True)
    there = tmp_path / "venv/bin/python"
    done = run(sys.executable, "-m", "pip", "--python", there, "install", "--no-deps", "--no-index", made)
    assert done.returncode == 0, done.stderr
    lowmem = tmp_path / "venv/bin/lowmem"
    assert run(lowmem, "--version").stdout.startswith("lowmem ")
    assert run(lowmem, "plan", "--explain").stdout.startswith("optimizer")
    bare = run(lowmem, "plan", "llama:20m")
    assert (bare.returncode, bare.stderr) == (
        1,
        "lowmem: this needs torch, which is not installed; pip install torch\n",
    )
    packages = str(Path(torch.__file__).parents[1])
    done = run(
        lowmem, "plan", "llama:20m", "--gpu", "t4", "--seq-len", "8", "--optimizer", "adamw", PYTHONPATH=packages
    )
    assert done.returncode == 0 and "0.02 B parameters" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_source_distribution_is_the_whole_package_and_no_test_that_could_not_run(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("src/lowmem", "tests/workflow", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "reports", "api"))
    build = "from setuptools import build_meta; print(build_meta.build_sdist('made'))"
    environment = {key: x for key, x in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next((tmp_path / "made").glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"src/lowmem/optim/core/adam_kernel.c", "src/lowmem/py.typed", "CHANGELOG.md"} <= names
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src/lowmem").rglob("*.py")}
    assert code <= names and not {name for name in names if name.startswith(("tests", "docs", "benchmarks"))}


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
