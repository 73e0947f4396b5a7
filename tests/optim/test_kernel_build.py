"""Building the C kernel: kept where nobody else can write, checked before use, made anew when damaged."""

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from torch import nn

from lowmem.optim import AdamMini
from lowmem.optim.core import cpu_kernel, kernel_build

SCRIPT = """
import torch
from lowmem.optim import AdamMini
from lowmem.optim.core import cpu_kernel
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
model(torch.ones(1, 3)).sum().backward()
AdamMini(model, lr=0.1).step()
print(cpu_kernel.library() is not None, [round(x, 5) for x in model.weight.flatten().tolist()])
"""


def fresh_process(cache: Path, warned: bool = False, **environment):
    """(whether the kernel was there, the weights as text) of the script in a process of its own; None unsets a variable."""
    base = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    base.pop("LOWMEM_KERNEL", None)
    given = {key: value for key, value in {**base, **environment}.items() if value is not None}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == int(warned) and ("PyTorch code" in done.stderr) == warned, done.stderr
    there, weights = done.stdout.strip().split(" ", 1)
    return there == "True", weights


def expected_weights() -> str:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    AdamMini(model, lr=0.1).step()
    return str([round(x, 5) for x in model.weight.flatten().tolist()])


def kept(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.so"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder for kernels that load() builds in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LOWMEM_KERNEL", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A cache folder with a kernel in it."""
    folder = tmp_path_factory.mktemp("built") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        assert kernel_build.load() is not None
    return folder


@pytest.fixture
def filled(built, cache) -> Path:
    """A copy of it, in use."""
    return shutil.copytree(built, cache)


def test_it_builds_here():
    """Where a compiler is installed, a silent fall back would be a defect that no other test sees."""
    has_compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    assert (cpu_kernel.library() is not None) == has_compiler or os.environ.get("LOWMEM_KERNEL") == "0"


def test_the_switch_in_the_environment_turns_it_off(monkeypatch, caplog):
    monkeypatch.setenv("LOWMEM_KERNEL", "0")
    assert kernel_build.load() is None and not caplog.text


def test_without_a_compiler_nothing_is_said(monkeypatch, caplog):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("LOWMEM_KERNEL", raising=False)
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.INFO, logger="lowmem"):
        assert kernel_build.load() is None
    assert not caplog.text


def test_a_process_with_a_broken_compiler_says_so_in_a_line_and_gets_the_same_numbers(tmp_path):
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    broken.chmod(0o755)
    assert fresh_process(tmp_path / "b", warned=True, CC=str(broken)) == (False, expected_weights())
    assert not kept(tmp_path)


WRITES_NONSENSE = """#!/bin/sh
for word; do [ "$before" = -o ] && echo nonsense >"$word"; before=$word; done
exit 0
"""


@pytest.mark.parametrize("compiler", ["/nothing/here", "true", "gcc 'x", "python -c 1/0 --", "a script"])
def test_whatever_is_wrong_with_the_compiler_one_line_says_so(compiler, cache, tmp_path, monkeypatch, caplog):
    if compiler == "a script":
        compiler = tmp_path / "cc"
        compiler.write_text(WRITES_NONSENSE)
        compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.chdir(tmp_path)
    assert kernel_build.load() is None
    assert len(caplog.records) == 1 and "PyTorch code" in caplog.text


@needs_compiler
@pytest.mark.parametrize("damage", ["cut short", "empty", "zeros", "a flipped bit", "another file"])
def test_a_damaged_library_is_noticed_and_built_anew(damage, filled):
    (library,) = kept(filled)
    content = library.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    new = {"cut short": content[:20000], "empty": b"", "zeros": bytes(len(content)), "a flipped bit": bytes(flipped)}
    replaced = library.with_suffix(".new")  # a loaded library must not be written to
    replaced.write_bytes(new.get(damage, b"not a library"))
    os.replace(replaced, library)
    assert fresh_process(filled) == (True, expected_weights())
    assert [path.read_bytes() for path in kept(filled)] == [content]


@needs_compiler
@pytest.mark.parametrize("note", [None, "", "{", "[]", '{"blocks": "plain"}', '{"blocks": 7, "elements": "plain"}'])
def test_a_lost_or_damaged_note_of_the_chosen_variants_is_made_anew(note, filled):
    (path,) = filled.rglob("*.json")
    path.unlink() if note is None else path.write_text(note)
    chosen = kernel_build.load()
    assert json.loads(path.read_text()) == {
        "blocks": kernel_build.VARIANTS[chosen.blocks],
        "elements": kernel_build.VARIANTS[chosen.elements],
    }


@needs_compiler
def test_the_remembered_variants_are_used(filled):
    (path,) = filled.rglob("*.json")
    path.write_text('{"blocks": "every line", "elements": "page heads"}')
    chosen = kernel_build.load()
    assert (kernel_build.VARIANTS[chosen.blocks], kernel_build.VARIANTS[chosen.elements]) == (
        "every line",
        "page heads",
    )


@needs_compiler
@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_what_is_kept_belongs_to_its_owner_alone_under_any_umask(mask, cache):
    before = os.umask(mask)
    try:
        kernel_build.load()
    finally:
        os.umask(before)
    (library,) = kept(cache)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (library.parent, library, library.with_suffix(".json"))]
    assert [mode & 0o077 for mode in modes] == [0, 0, 0]


@needs_compiler
@pytest.mark.parametrize("how", ["others may write", "group may write", "a file in its place", "of another user"])
def test_a_folder_that_others_could_write_to_is_neither_read_nor_written(how, cache, monkeypatch):
    folder = cache / "lowmem" / "kernels"
    folder.parent.mkdir(parents=True)
    if how == "a file in its place":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod({"others may write": 0o777, "group may write": 0o770}.get(how, 0o700))
    if how == "of another user":
        owner = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert kernel_build.load() is not None
    assert not kept(cache)


@needs_compiler
def test_without_home_and_user_entry_it_is_built_for_the_process(tmp_path, monkeypatch):
    monkeypatch.delenv("LOWMEM_KERNEL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, as its standard says
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does when it finds no home
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", None)
    assert kernel_build.cache_folder() is None and kernel_build.load() is not None
    assert not list(tmp_path.iterdir())


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_memory_outside_the_tensors_is_touched(tmp_path):
    """The kernel's tests once more with a kernel that reports every access outside an allocation."""
    # libstdc++ beside it, since the sanitizer looks for the function that throws when it starts, before PyTorch brings it
    asks = (["gcc", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so"))
    libraries = [subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip() for ask in asks]
    environment = {
        **os.environ,
        "CC": "gcc -fsanitize=address -fno-omit-frame-pointer",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    names = ("test_kernel", "test_eight_bit_kernel", "test_eight_bit", "test_twins", "test_limits")
    tests = [str(Path(__file__).with_name(f"{name}.py")) for name in names]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert kept(tmp_path), "the reporting kernel was built and used"
