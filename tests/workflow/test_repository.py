"""Files that must agree with each other: Makefile, lock, environment, profiles, licence."""

import datetime
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from checkout import ROOT
from packaging.specifiers import SpecifierSet

import lowmem
from lowmem.pipeline import experiments, planning


def read(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def locked(root: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9-]*)==(\S+)", read(root, "requirements.lock"), re.MULTILINE))


def test_lock_holds_every_declared_package_with_hashes_but_not_torch(root):
    project = tomllib.loads(read(root, "pyproject.toml"))["project"]
    wanted = [text for extra in ("pipeline", "hub", "test") for text in project["optional-dependencies"][extra]]
    names = {re.match(r"[A-Za-z0-9-]+", text).group().lower() for text in wanted}
    assert names <= set(locked(root))
    assert not {name for name in locked(root) if name == "torch" or name.startswith(("nvidia", "triton"))}
    entries = re.split(r"^(?=[a-z0-9])", read(root, "requirements.lock"), flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)


def test_lock_names_no_index_and_no_address(root):
    assert not re.search(r"://|--index-url|--extra-index-url|--find-links", read(root, "requirements.lock"))


def test_heavy_packages_stay_out_of_the_lock(root):
    assert not {"deepspeed", "torch-geometric", "torchvision"} & set(locked(root))


def test_environment_and_makefile_pin_the_same_torch(root):
    [makefile] = set(re.findall(r"torch==[\d.]+", read(root, "Makefile")))
    assert makefile in read(root, "environment.yml")


def test_environment_admits_every_locked_version(root):
    environment = yaml.safe_load(read(root, "environment.yml"))["dependencies"]
    pip = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    entries = [entry.split("#")[0] for entry in (*filter(lambda e: isinstance(e, str), environment), *pip)]
    wanted = dict(
        re.match(r"([a-z0-9-]+?)(?:-minimal|-base)?\s*([<>=].*)?$", entry.strip()).groups() for entry in entries
    )
    checked = {name: version for name, version in locked(root).items() if wanted.get(name)}
    assert len(checked) >= 8
    for name, version in checked.items():
        assert SpecifierSet(wanted[name]).contains(version), f"{name}: {version} is not {wanted[name]}"


def test_the_container_installs_by_the_makefile_with_an_admitted_python(root):
    recipe = read(root, "Containerfile")
    [version] = re.findall(r"^FROM docker.io/library/python:(\d+\.\d+)-slim", recipe, re.MULTILINE)
    project = tomllib.loads(read(root, "pyproject.toml"))["project"]
    assert version in SpecifierSet(project["requires-python"])
    environment = yaml.safe_load(read(root, "environment.yml"))["dependencies"]
    assert version in SpecifierSet(environment[0].removeprefix("python").strip())
    assert "RUN make .venv/.installed" in recipe and "pip install" not in recipe
    copied = re.findall(r"^COPY (.+) \S+$", recipe.split("RUN make")[0], re.MULTILINE)
    assert {"Makefile", "pyproject.toml", "requirements.lock", "src"} <= set(" ".join(copied).split())
    assert all((root / name).exists() for name in " ".join(copied).split())


def test_environment_names_every_package_of_the_pipeline(root):
    environment = yaml.safe_load(read(root, "environment.yml"))["dependencies"]
    pip = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    listed = {
        re.match(r"[a-z0-9-]+", text).group() for text in [*filter(lambda e: isinstance(e, str), environment), *pip]
    }
    listed |= {name.removesuffix("-minimal").removesuffix("-base") for name in listed}
    extras = tomllib.loads(read(root, "pyproject.toml"))["project"]["optional-dependencies"]
    wanted = {re.match(r"[a-z0-9-]+", text).group() for extra in ("pipeline", "hub") for text in extras[extra]}
    assert wanted <= listed


def test_default_profile_never_sets_cores_executor_or_report(root):
    profile = yaml.safe_load(read(root, "profiles/default/profile.yaml"))
    assert not {"cores", "jobs", "executor", "report", "report-after-run"} & set(profile)
    assert profile["rerun-incomplete"] and profile["keep-going"]


def test_slurm_profile_repeats_the_default_one_and_selects_the_paper_tier(root):
    default = yaml.safe_load(read(root, "profiles/default/profile.yaml"))
    slurm = yaml.safe_load(read(root, "profiles/slurm/profile.yaml"))
    local = {"resources"}  # limits of one machine
    assert {key: slurm.get(key) for key in default if key not in local} == {
        key: value for key, value in default.items() if key not in local
    }
    assert slurm["config"] == ["tier=paper"] and slurm["executor"] == "slurm"


def make(root: Path, *arguments: str, env: dict | None = None) -> subprocess.CompletedProcess:
    """A make of its own, also when the tests themselves run under `make test`."""
    own = {key: value for key, value in (env or os.environ).items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=root, capture_output=True, text=True, timeout=60, env=own)


def test_a_second_make_does_not_install_again(root, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / ".installed").touch()
    done = make(root, "--dry-run", "test", f"VENV={tmp_path}")
    assert done.returncode == 0 and "pytest" in done.stdout and "pip install" not in done.stdout


def test_make_refuses_an_old_python_in_one_line(root, tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(root, "test", f"VENV={tmp_path}/venv", f"PYTHON={old}")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode and lines == [
        "make: no Python 3.11, 3.12 or 3.13 with venv found; install one, or name it: make PYTHON=/path/to/python3"
    ]


def test_make_refuses_intel_macs_in_one_line(root, tmp_path):
    uname = tmp_path / "uname"
    uname.write_text('#!/bin/sh\n[ "$1" = -m ] && echo x86_64 || echo Darwin\n')
    uname.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = make(root, "test", f"VENV={tmp_path}/venv", env=environment)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode and len(lines) == 1 and "Intel Macs" in lines[0]


def test_torch_index_is_the_cpu_one_only_on_linux_without_a_gpu_and_can_be_emptied(root, tmp_path):
    def index(system: str, gpu: bool, *more: str) -> str:
        for name, text in {"uname": f"echo {system}", "nvidia-smi": "true"}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755 if name == "uname" or gpu else 0o644)
        environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
        environment.pop("TORCH_INDEX", None)
        done = make(root, "--dry-run", f"VENV={tmp_path}/venv", "test", *more, env=environment)
        return re.search(r'index="([^"]*)"', done.stdout).group(1)

    assert index("Linux", False).endswith("/whl/cpu")
    assert index("Linux", True) == "" and index("Darwin", False) == ""
    assert index("Linux", False, "TORCH_INDEX=") == ""


def test_ci_runs_every_phase_and_stops_at_the_first_failure(root):
    text = read(root, ".ci/run")
    assert "set -euo pipefail" in text
    for word in (
        "make test",
        "-m slow",
        "ruff check",
        "ruff format --check",
        "snakefmt --check",
        "snakemake --lint",
        "tier=smoke",
        "tests/metadata",
    ):
        assert word in text


def test_targets_that_the_pages_name_exist(root):
    rules = read(root, "Snakefile") + "".join(path.read_text() for path in (root / "workflow/rules").glob("*.smk"))
    known = set(re.findall(r"^rule (\w+):", rules, re.MULTILINE))
    known |= {path.stem for path in (root / "src/lowmem/exhibits").glob("[a-z]*.py")}
    pages = read(root, "README.md") + read(root, "docs/pipeline.md")
    lines = re.findall(r"^snakemake (.*?)(?:#|$)|`snakemake (.*?)`", pages, re.MULTILINE)
    assert len(lines) >= 5
    for line in map("".join, lines):
        words = re.sub(r"--(cores|config|workflow-profile) \S+", "", line).split()
        assert set(words) <= known, line


def test_every_file_that_names_the_version_names_the_packages_and_the_changelog_dates_it(root):
    first = re.search(r"^## (\S+) \((\d{4}-\d{2}-\d{2})\)$", read(root, "CHANGELOG.md"), re.MULTILINE)
    assert first and datetime.date.fromisoformat(first[2])
    assert first[1] == lowmem.__version__ == yaml.safe_load(read(root, "CITATION.cff"))["version"]
    assert json.loads(read(root, "codemeta.json"))["version"] == lowmem.__version__


def test_no_command_of_the_readme_writes_what_the_repository_keeps(root):
    """The rules' outputs and logs at every tier, and what make, pytest and snakemake keep for themselves, are git-ignored."""
    rules = "".join(path.read_text() for path in (root / "workflow/rules").glob("*.smk"))
    known = {"job": "experiment/variant/seed0", "raw": "sotu@hub", "kind": "figure", "suffix": "svg"}
    places = set(re.findall(r'"((?:reports|results|logs|data/raw|data/prepared)/[^"]*)"', rules))
    assert len(places) >= 15
    written = {".venv", ".snakemake/log/a.log", ".pytest_cache/README.md", "src/lowmem.egg-info/PKG-INFO"}
    for tier in experiments.tier_names(root):
        written |= {
            name for header in planning.exhibits(root).values() for name in planning.exhibit_files(tier, header)
        }
        for place in places:
            named = place.replace("{{", "{").replace("}}", "}").replace("{TIER}", tier)
            written.add(re.sub(r"{([\w.]+)}", lambda found: known.get(found[1], found[1]), named))
        for folder in ("so_far", "archived"):
            written |= {
                f"reports/{tier}/{folder}/{name}" for name in ("claims.json", "index.html", "figures/lomo_fig1.svg")
            }
    assert not [name for name in written if "{" in name]
    asked = ["git", "check-ignore", "--stdin"]
    done = subprocess.run(asked, cwd=root, input="\n".join(written), capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()) == written
    kept = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    assert (kept.returncode, kept.stdout) == (0, "")


def test_text_has_the_same_line_ends_in_every_checkout():
    """Hashes of code are those of the bytes on disk, which core.autocrlf would change."""
    for name in (
        "src/lowmem/cli/__init__.py",
        "src/lowmem/optim/core/adam_kernel.c",
        "workflow/config/claims/alignment.yaml",
    ):
        asked = ["git", "check-attr", "text", "eol", "--", name]
        found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
        assert found.stdout.splitlines() == [f"{name}: text: auto", f"{name}: eol: lf"]
        assert b"\r" not in (ROOT / name).read_bytes()


@pytest.mark.parametrize(
    "asked, given", [("C", "C.UTF-8"), ("POSIX", "C.UTF-8"), ("de_DE.UTF-8", "de_DE.UTF-8"), ("", "")]
)
def test_make_never_asks_python_for_ascii(root, asked, given):
    """With LC_ALL=C, pip's editable install and then Python itself fail in a folder with an umlaut."""
    show = ["make", "--no-print-directory", "--eval=show: ; @echo =$$LC_ALL=", "show"]
    done = subprocess.run(
        show, cwd=root, env={**os.environ, "LC_ALL": asked}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"={given}="
