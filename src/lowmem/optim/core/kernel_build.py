"""Building the step kernel once with the system's C compiler, and choosing its variant for this processor by timing.

Kept under $XDG_CACHE_HOME/lowmem/kernels or ~/.cache/lowmem/kernels, in files that only their owner can write. A library
carries its hash in its name: what was cut short or altered is built anew. Where nothing can be kept, each process builds.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import mmap
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lowmem.files import sha256

SOURCE = Path(__file__).with_name("eight_bit_kernel.c")  # which includes adam_kernel.c
SOURCES = (SOURCE, Path(__file__).with_name("adam_kernel.c"))
# No -ffast-math, nothing that reorders or joins operations: other processors and compilers shall give the same bits.
FLAGS = "-O3 -shared -fPIC -std=c11 -fno-math-errno -fno-trapping-math -ffp-contract=off"
TARGETS = ("-march=native -mprefer-vector-width=512", "-march=native", "-mcpu=native", "")
VARIANTS = ("plain", "two at once", "page heads", "every line")  # as numbered in C
ELEMENTS = 1 << 22  # of each array in the timing: 64 MB, more than a core's caches
NAMES = (
    "decay_factor", "step_size", "beta1", "beta2", "eps", "inv_sqrt_bias_correction2", "one_minus_beta1", "one_minus_beta2",
    "largest",
)  # fmt: skip
log = logging.getLogger("lowmem")


class Scalars(ctypes.Structure):
    """Mirror of the C struct: numbers that all elements share in one step."""

    _fields_ = [(name, ctypes.c_float) for name in NAMES]


class Segment(ctypes.Structure):
    """Mirror of the C struct: one strided array of blocks, by the addresses of its tensors and scalars."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("p", "m", "v", "g", "h")),
        *((name, ctypes.c_int64) for name in ("outer", "stride", "blocks", "run")),
    ]


class Kernel(NamedTuple):
    """step(variant of blocks, variant of elements, segments, count, counter), and the variants chosen here; for moments in
    codes measure(tensors, count, counter), then move_codes(the same)."""

    step: Callable
    measure: Callable
    move_codes: Callable
    blocks: int
    elements: int


def compiler() -> str | None:
    """The command of the C compiler that builds the kernel; None without one, and with LOWMEM_KERNEL=0."""
    if os.environ.get("LOWMEM_KERNEL") == "0":
        return None
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def load() -> Kernel | None:
    """The kernel, built if need be, or None where it cannot be: silently when there is no compiler or
    LOWMEM_KERNEL=0, with a line in the log when a compiler is there and fails."""
    command = compiler()
    if command is None:
        log.debug("no C compiler is to be used; optimizers use their PyTorch code")
        return None
    try:
        if folder := cache_folder():
            return _load_from(folder, shlex.split(command))
        with tempfile.TemporaryDirectory(prefix="lowmem-") as folder:
            return _load_from(Path(folder), shlex.split(command))
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError) as error:
        log.warning("C kernel not built (%s); optimizers use their PyTorch code", error)
        return None


def cache_folder() -> Path | None:
    """Where kernels are kept between processes, made if need be; None where others could write, or we cannot."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    if not os.path.isabs(base):  # neither HOME nor an entry in the list of users
        return None
    folder = Path(base) / "lowmem" / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        log.debug("%s cannot be used (%s); the C kernel is built for this process alone", folder, error)
        return None
    if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        log.debug("%s belongs to others, or others may write to it; the C kernel is built for this process", folder)
        return None
    return folder


def _load_from(folder: Path, compiler: list[str]) -> Kernel:
    path = build(folder, compiler)
    library = ctypes.CDLL(str(path))
    step, *_ = functions = library.step, library.measure, library.move_codes
    for function in functions:
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)]
        function.restype = None
    step.argtypes = [ctypes.c_int, ctypes.c_int, *step.argtypes]
    note = path.with_suffix(".json")
    try:
        chosen = json.loads(note.read_text(encoding="utf-8"))
        blocks, elements = (VARIANTS.index(chosen[kind]) for kind in ("blocks", "elements"))
    except (OSError, ValueError, KeyError, TypeError):
        blocks, elements = fastest(step)
        _write(note, json.dumps({"blocks": VARIANTS[blocks], "elements": VARIANTS[elements]}).encode())
    return Kernel(*functions, blocks, elements)


def build(folder: Path, compiler: list[str]) -> Path:
    """The library in a folder, compiled unless it is there and whole; its name says source, compiler, flags, processor
    (so that a shared home stays right) and, last, its own hash. OSError when the compiler fails."""
    texts = [source.read_text(encoding="utf-8") for source in SOURCES]
    key = "\n".join([*texts, *compiler, FLAGS, *TARGETS, platform.machine(), _processor()])
    name = f"adam-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    for path in sorted(folder.glob(f"{name}-*.so")):
        if path.stem == f"{name}-{sha256(path)[:16]}":
            return path
        path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        out = Path(scratch) / "kernel.so"
        for flags in TARGETS:
            command = [*compiler, *shlex.split(FLAGS), *shlex.split(flags), str(SOURCE), "-o", str(out), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
            if done.returncode == 0:
                content = out.read_bytes()
                target = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}.so"
                _write(target, content)
                return target
    message = done.stderr.strip().splitlines()
    raise OSError(f"{' '.join(compiler)} failed: {message[-1] if message else 'no message'}")


def _write(path: Path, content: bytes) -> None:
    """A whole file, on the disk before it has its name, or none."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kept = ("model", "cpu family", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kept)}))


def fastest(step: Callable) -> tuple[int, int]:
    """(variant for blocks, variant for elements) that take least time here over arrays that fit in no cache."""
    size = 4 * ELEMENTS
    with mmap.mmap(-1, 4 * size) as memory:
        whole = (ctypes.c_char * (4 * size)).from_buffer(memory)
        p = ctypes.addressof(whole)
        ctypes.memset(p, 0x3C, 4 * size)  # fills with 0.0115, and touches every page
        h = Scalars(1, 1e-9, 0.9, 0.999, 1e-8, 1, 0.1, 0.001, float("inf"))

        def segment(run: int, start: int = 0, elements: int = ELEMENTS) -> Segment:
            at = [p + k * size + 4 * start for k in range(4)]
            return Segment(*at, ctypes.addressof(h), 1, elements, elements // run, run)

        half = ELEMENTS // 2  # rows of a small model and heads of a large one
        kinds = [[segment(768, 0, half), segment(49152, half, half)], [segment(1)]]
        best = [_quickest(step, segments) for segments in kinds]
        del whole  # else the mapping cannot be closed
    return best[0], best[1]


def _quickest(step: Callable, segments: list[Segment]) -> int:
    addresses = (ctypes.c_void_p * len(segments))(*map(ctypes.addressof, segments))
    seconds = [float("inf")] * len(VARIANTS)
    for _ in range(10):  # in turn, so that noise hits all variants alike; three rounds chose badly on a busy machine
        for variant in range(len(VARIANTS)):
            started = time.perf_counter()
            step(variant, variant, addresses, len(segments), ctypes.byref(ctypes.c_int64(0)))
            seconds[variant] = min(seconds[variant], time.perf_counter() - started)
    return seconds.index(min(seconds))
