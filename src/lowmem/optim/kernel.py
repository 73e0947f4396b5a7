"""The Adam step of AdamW and Adam-mini as a plain C loop for fp32 tensors on CPU, built once with the system's compiler.

Where no C compiler works, or LOWMEM_KERNEL=0, the rules' PyTorch code runs instead: same arithmetic, other order of
rounding (1e-6 relative). Built in well under a second and cached under $XDG_CACHE_HOME/lowmem or ~/.cache/lowmem.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("adam_kernel.c")
# -fassociative-math lets sums of squares vectorise; it needs the two flags after it. Not -ffast-math: that would also
# make subnormal numbers zero in the whole process.
FLAGS = (
    "-O3 -funroll-loops -shared -fPIC -std=c11 -fno-math-errno -fassociative-math -fno-signed-zeros -fno-trapping-math"
)
TARGETS = ("-march=native -mprefer-vector-width=512", "-march=native", "-mcpu=native", "")
THREADS_PAY_FROM = 1 << 18  # elements; below, waking a second thread costs more than it saves
log = logging.getLogger("lowmem")

NAMES = ("keep", "step_size", "beta1", "beta2", "eps", "bias2_rsqrt", "gain1", "gain2")


class Scalars(ctypes.Structure):
    """Mirror of the C struct: numbers that all elements share in one step."""

    _fields_ = [(name, ctypes.c_float) for name in NAMES]


class Segment(ctypes.Structure):
    """Mirror of the C struct: one strided array of blocks, by the addresses of its tensors and scalars."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("p", "m", "v", "g", "h")),
        *((name, ctypes.c_int64) for name in ("outer", "stride", "blocks", "run")),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built kernel, or None where it cannot be built (the reason goes to the log at debug level)."""
    if os.environ.get("LOWMEM_KERNEL") == "0":
        return None
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        log.debug("no C compiler found; optimizers use their PyTorch code")
        return None
    try:
        built = _build(shlex.split(compiler))
        kernel = ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("C kernel not built (%s); optimizers use their PyTorch code", error)
        return None
    kernel.step.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)]
    kernel.step.restype = None
    return kernel


def _build(compiler: list[str]) -> Path:
    """Compile into the cache, named by source, compiler, flags and processor, so that a shared home stays right."""
    key = "\n".join([SOURCE.read_text(), *compiler, FLAGS, *TARGETS, platform.machine(), _processor()])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowmem"
    target = cache / f"adam-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        out = Path(folder) / "kernel.so"
        for flags in TARGETS:
            command = [*compiler, *shlex.split(FLAGS), *shlex.split(flags), str(SOURCE), "-o", str(out), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode == 0:
                os.replace(out, target)
                return target
        raise OSError(
            f"{' '.join(compiler)} failed: {done.stderr.strip().splitlines()[-1] if done.stderr else 'no message'}"
        )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def adam(optimizer, ready: list) -> list:
    """Step every eligible tensor of `ready`, [(group, p, g, state, scalars, layout)], in C; returns the others."""
    if torch.compiler.is_compiling() or optimizer._compile or (ready and ready[0][4]["factor"] != 1.0):
        return ready
    kernel = library()
    if kernel is None:
        return ready
    addresses, rest, alive, elements, numbers = [], [], [], 0, {}
    for entry in ready:
        _, p, g, state, h, lay = entry
        if h.get("reduce", "mean") != "mean" or not _plain(g):
            rest.append(entry)
            continue
        segments = _segments(optimizer._segments, p, state["exp_avg"], state["exp_avg_sq"], lay)
        if not segments:
            rest.append(entry)
            continue
        if id(h) not in numbers:
            numbers[id(h)] = Scalars(*[h[name] for name in NAMES])
        at, scalars = g.data_ptr(), ctypes.addressof(numbers[id(h)])
        for segment, offset, address in segments:
            segment.g, segment.h = at + offset, scalars
            addresses.append(address)
        alive.append(p)
        elements += lay.held
    if alive:
        _run(kernel, (ctypes.c_void_p * len(addresses))(*addresses), elements)
        torch.autograd.graph.increment_version(alive)  # so that autograd notices, as with any in-place operation
    return rest


def _segments(cache: dict, p: torch.Tensor, m: torch.Tensor, v: torch.Tensor, lay) -> list:
    """[(segment, byte offset of its gradient, address)] of one parameter, [] where C cannot do it; kept between steps."""
    key = m.data_ptr()
    at = (p.data_ptr(), v.data_ptr())
    found = cache.get(key)
    if found is not None and found[0] == at and found[1] is lay:
        return found[2]
    if not (_plain(p) and _plain(m) and _plain(v)) or p.numel() == 0:
        return []
    segments = []
    for offset, first, *sizes in lay.strips:
        segment = Segment(at[0] + 4 * offset, key + 4 * offset, at[1] + 4 * first, None, None, *sizes)
        segments.append((segment, 4 * offset, ctypes.addressof(segment)))
    cache[key] = (at, lay, segments)
    return segments


def _plain(t: torch.Tensor) -> bool:
    return (
        type(t) in (torch.Tensor, torch.nn.Parameter)
        and t.dtype == torch.float32
        and t.device.type == "cpu"
        and t.is_contiguous()
    )


def _run(kernel, segments, elements: int) -> None:
    """All threads take chunks from one shared counter; ctypes releases the interpreter lock during the call."""
    counter = ctypes.c_int64(0)
    arguments = (segments, len(segments), ctypes.byref(counter))
    threads = torch.get_num_threads() if elements >= THREADS_PAY_FROM else 1
    helpers = [_pool(threads).submit(kernel.step, *arguments) for _ in range(threads - 1)]
    kernel.step(*arguments)
    for helper in helpers:
        helper.result()


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(max(threads - 1, 1), thread_name_prefix="lowmem-kernel")
