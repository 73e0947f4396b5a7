"""The C kernel: same numbers as the PyTorch path, same bits for any number of threads, no harm where it cannot be built."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from block_layouts import LARGE, SETTINGS, layout, optimizer_over, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowmem.optim import AdamMini, AdamW, adamw, kernel
from lowmem.optim.adamw import in_one_kernel

needs_compiler = pytest.mark.skipif(kernel.library() is None, reason="no C compiler here")


def test_it_builds_here():
    """Where a compiler is installed, a silent fall back would be a defect that no other test sees."""
    import shutil

    has_compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    assert (kernel.library() is not None) == has_compiler or os.environ.get("LOWMEM_KERNEL") == "0"


def without_kernel(monkeypatch):
    monkeypatch.setattr(kernel, "library", lambda: None)


@needs_compiler
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(layout(), min_size=1, max_size=4, unique_by=lambda b: b.name), st.integers(0, 1000))
def test_it_equals_the_pytorch_path_for_any_block_layout(layouts, seed):
    in_c = run(*optimizer_over(layouts, seed))
    with pytest.MonkeyPatch.context() as patch:
        without_kernel(patch)
        in_torch = run(*optimizer_over(layouts, seed))
    for a, b in zip(in_c, in_torch, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


@needs_compiler
def test_it_equals_the_pytorch_path_at_sizes_of_many_chunks(monkeypatch):
    in_c = run(*optimizer_over(LARGE, 0))
    without_kernel(monkeypatch)
    in_torch = run(*optimizer_over(LARGE, 0))
    for a, b in zip(in_c, in_torch, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-6, atol=5e-7)


@needs_compiler
def test_any_number_of_threads_gives_the_same_bits():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(*optimizer_over(LARGE, 0), steps=2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_compiler
def test_adamw_equals_its_pytorch_path(monkeypatch):
    def train():
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape)) for shape in ((300, 700), (5,), (3, 4, 5))]
        return run(AdamW(parameters, **SETTINGS), parameters)

    in_c = train()
    without_kernel(monkeypatch)
    for a, b in zip(in_c, train(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


def test_the_kernel_for_gpus_equals_the_pytorch_path_and_leaves_what_rounds_otherwise(monkeypatch):
    """torch's fused AdamW also exists for CPUs, where it can be tried without a GPU."""
    without_kernel(monkeypatch)
    monkeypatch.setattr(adamw, "ON", ("cpu",))

    def train(fast):
        torch.manual_seed(0)
        kinds = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.bfloat16, torch.bfloat16)
        parameters = [nn.Parameter(torch.randn(30, 7).to(kind)) for kind in kinds]
        groups = [
            {"params": parameters[:1], "lr": torch.tensor(0.02)},
            {"params": parameters[1:4], "weight_decay": 0.0},
            {"params": parameters[4:5], "rounding": "stochastic"},
            {"params": parameters[5:], "state_dtype": torch.float32},
        ]
        optimizer, left = AdamW(groups, **SETTINGS), []
        if fast:
            optimizer.fast = lambda ready: left.append(in_one_kernel(ready)) or left[-1]
        return run(optimizer, parameters), [len(entries) for entries in left]

    (plain, _), (fused, left) = train(fast=False), train(fast=True)
    assert left and set(left) == {2}, "stochastic rounding and moments of another type went the general way"
    unit = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=unit[a.dtype], atol=2e-7)


@needs_compiler
def test_it_takes_contiguous_fp32_only_and_leaves_the_rest():
    parameters = [
        nn.Parameter(torch.ones(4, 6)),
        nn.Parameter(torch.ones(6, 4).t()),
        nn.Parameter(torch.ones(4, 6, dtype=torch.bfloat16)),
        nn.Parameter(torch.ones(4, 6, dtype=torch.float64)),
    ]
    optimizer, left = AdamW(parameters, lr=0.1, weight_decay=0.0), []
    fast = optimizer.fast
    optimizer.fast = lambda ready: left.extend(fast(ready)) or left
    for p in parameters:
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    assert [entry[1] is p for entry, p in zip(left, parameters[1:], strict=True)] == [True] * 3
    assert all(torch.allclose(p.double(), torch.tensor(0.9, dtype=torch.float64), atol=4e-3) for p in parameters)


@needs_compiler
def test_unaligned_storage_is_stepped_in_place():
    """Views into one buffer, as flat shards are, at offsets that no vector load is aligned to."""
    torch.manual_seed(0)
    buffer = torch.randn(1000)
    p, q = nn.Parameter(buffer[1:334]), nn.Parameter(buffer[1:334].clone())
    margin = buffer[0].item(), buffer[334].item()
    a, b = AdamW([p], **SETTINGS), AdamW([q], **SETTINGS)
    for optimizer, x in ((a, p), (b, q)):
        x.grad = torch.linspace(-1, 1, 1000)[3:336]
        optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert (buffer[0].item(), buffer[334].item()) == margin


SCRIPT = """
import torch
from lowmem.optim import AdamMini, kernel
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
model(torch.ones(1, 3)).sum().backward()
AdamMini(model, lr=0.1).step()
print(kernel.library() is not None, [round(x, 5) for x in model.weight.flatten().tolist()])
"""


def fresh_process(tmp_path, **environment):
    """(whether the kernel was there, the weights as text) of the script in a process with an empty cache."""
    base = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    base.pop("LOWMEM_KERNEL", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**base, **environment}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")  # silent, whatever happened
    there, weights = done.stdout.strip().split(" ", 1)
    return there == "True", weights


def test_the_switch_in_the_environment_turns_it_off(monkeypatch):
    monkeypatch.setenv("LOWMEM_KERNEL", "0")
    assert kernel.library.__wrapped__() is None


def test_a_process_with_a_broken_compiler_gets_the_same_numbers_silently(tmp_path):
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    broken.chmod(0o755)
    fallen, weights = fresh_process(tmp_path / "b", CC=str(broken))
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    AdamMini(model, lr=0.1).step()
    assert not fallen and not list(tmp_path.rglob("*.so"))
    assert weights == str([round(x, 5) for x in model.weight.flatten().tolist()])


@pytest.mark.parametrize("reason", ["missing compiler", "not a compiler", "cache is a file", "damaged library"])
def test_whatever_is_wrong_it_says_so_in_the_log_and_gives_none(reason, tmp_path, monkeypatch, caplog):
    cache, compiler = tmp_path / "cache", None
    if reason == "missing compiler":
        compiler = str(tmp_path / "nothing")
    elif reason == "not a compiler":  # succeeds without writing anything
        compiler = "true"
    elif reason == "cache is a file":
        cache.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("LOWMEM_KERNEL", raising=False)
    monkeypatch.setenv("CC", compiler) if compiler else monkeypatch.delenv("CC", raising=False)
    if reason == "damaged library":
        damaged = tmp_path / "damaged.so"
        damaged.write_bytes(b"not a library")
        monkeypatch.setattr(kernel, "_build", lambda compiler: damaged)
    with caplog.at_level(logging.DEBUG, logger="lowmem"):
        assert kernel.library.__wrapped__() is None
    assert "PyTorch code" in caplog.text
