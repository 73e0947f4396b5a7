"""The machine a run sees: device, threads, seeds and signals fixed; what it is, for the record."""

import contextlib
import ctypes
import functools
import os
import platform
import signal
import sys
import threading
from pathlib import Path

from lowmem.errors import Misuse

# Vector and matrix units that change speed, and so which settings make sense; x86 and Arm names.
FLAGS = ("amx_tile", "amx_bf16", "amx_int8", "avx512f", "avx512_bf16", "avx512_fp16", "avx2", "asimd", "bf16", "sve")

# Settings of glibc's malloc, by their mallopt() numbers. Training frees and allocates the same sizes at every
# step; by default much of it goes back to the system in between and returns as millions of page faults.
KEEP = {"MMAP_THRESHOLD": (-3, 32 << 20), "TRIM_THRESHOLD": (-1, 1 << 30), "TOP_PAD": (-2, 64 << 20)}
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # PyTorch's switch for transparent huge pages, read at its first allocation
TUNABLES = "GLIBC_TUNABLES"  # read by glibc at the start of a process: the pipeline asks it for huge pages, too
_kept: dict | None = None  # what keep_memory() set


def keep_memory() -> None:
    """Let this process keep the memory it frees, and use huge pages, before PyTorch is imported; no result depends on it.

    What the environment sets (MALLOC_TOP_PAD_=...) stays. Nothing happens without glibc, or once PyTorch is here.
    """
    global _kept
    if "torch" in sys.modules:
        return
    os.environ.setdefault(HUGE_PAGES, "1")
    _kept = {name: os.environ[name] for name in (HUGE_PAGES, TUNABLES) if name in os.environ}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda number, value: 0)
    for name, (number, value) in KEEP.items():
        name = f"MALLOC_{name}_"
        if name in os.environ:
            _kept[name] = os.environ[name]
        elif mallopt(number, value):
            _kept[name] = str(value)


def device_of(run: dict) -> str:
    """cuda when the run asks for GPUs, else cpu; Misuse when there is none. More than one process comes later."""
    if run["resources"].get("gpus", 0) == 0:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise Misuse(
            f"{run['id']} asks for a GPU and PyTorch sees none here; choose a tier for this machine (--tier laptop)"
        )
    return "cuda"


def measuring_device(settings: dict) -> str:
    """Take `device` (cpu or cuda, default cpu) out of config["measure"]; Misuse when the GPU it asks for is not here."""
    device = settings.pop("device", "cpu")
    if device not in ("cpu", "cuda"):
        raise Misuse(f"measure.device is {device!r}; choose cpu or cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise Misuse("measure.device is cuda and PyTorch sees no GPU here; use a tier for this machine")
    return device


@contextlib.contextmanager
def fixed(run: dict):
    """Fix what the result must not inherit from the process: threads, seeds, determinism. Yields the device.

    All of it is PyTorch's: a task that did not import it draws from generators of its own.
    """
    device = device_of(run)
    if not (torch := sys.modules.get("torch")):
        yield device
        if "torch" in sys.modules:
            raise Misuse("PyTorch was first imported while the task ran; import it at the top of the task's file")
        return
    threads, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(run["config"].get("train", {}).get("threads") or run["resources"].get("threads", 1))
    if run["config"].get("train", {}).get("compile"):
        torch.use_deterministic_algorithms(device == "cpu")  # tells the compiler too, whose import takes seconds
    torch.set_deterministic_debug_mode("error" if device == "cpu" else "default")  # a GPU would lose speed and kernels
    torch.utils.deterministic.fill_uninitialized_memory = False  # a check of PyTorch that costs a write per tensor
    torch.manual_seed(run["seed"])
    try:
        yield device
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def describe(kind: str) -> dict:
    """The machine: {type, name, cores, threads, flags, memory_bytes} of the CPU or GPU in use, and the platform.

    threads: PyTorch's; null where it is not in use. allocator: what keep_memory() set, null without it.
    """
    torch = sys.modules.get("torch")
    common = {
        "type": kind,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "platform": platform.platform(),
        "allocator": _kept,
    }
    if kind == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        return {**common, "name": gpu.name, "flags": [], "memory_bytes": gpu.total_memory}
    name, flags = platform.processor() or platform.machine(), []
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        name = fields.get("model name", name)
        known = set((fields.get("flags") or fields.get("Features") or "").split())
        flags = [flag for flag in FLAGS if flag in known]
    except OSError:
        pass  # not Linux: name and flags stay as they are
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        memory = None
    return {**common, "name": name, "flags": flags, "memory_bytes": memory}


@functools.cache
def compiler_trouble(device: str) -> str | None:
    """Why torch.compile does not work here, in one line; None if it works. Tries it, which takes seconds."""
    import torch

    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(64, device=device))
    except Exception as error:  # no compiler, no Python headers, no Triton, ...
        return str(error).strip().partition("\n")[0][:200]
    return None


def out_of_memory(error: BaseException) -> str | None:
    """ "oom" if a GPU has too little memory for the run, which a repeat would only confirm, so it is a result; "failed" if
    this machine had too little left, which may be different a moment later; None for any other error."""
    torch = sys.modules.get("torch")
    if torch and isinstance(error, torch.OutOfMemoryError):
        return "oom"
    return "failed" if isinstance(error, MemoryError) or "can't allocate memory" in str(error) else None


@contextlib.contextmanager
def on_sigterm():
    """Yield a function that says whether SIGTERM has arrived; outside the main thread it installs no handler."""
    received = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
