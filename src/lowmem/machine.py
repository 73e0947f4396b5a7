"""The machine a run sees: device, threads, seeds and signals fixed; what it is, for the record."""

import contextlib
import importlib
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from lowmem import kept_files
from lowmem.errors import Misuse

# Vector and matrix units that change speed, and with it what is sensible; x86 and Arm names.
FLAGS = ("amx_tile", "amx_bf16", "amx_int8", "avx512f", "avx512_bf16", "avx512_fp16", "avx2", "asimd", "bf16", "sve")


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


def describe(kind: str, code: Iterable[str] = ()) -> dict:
    """The machine: {type, name, cores, threads, kernel, flags, memory_bytes} of the CPU or GPU in use, and the platform.

    code: the files of the run, see kernel(). threads: PyTorch's. Both are null where PyTorch is not in use.
    """
    torch = sys.modules.get("torch")
    common = {
        "type": kind,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "kernel": kernel(kind, code) if torch else None,
        "platform": platform.platform(),
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


def kernel(kind: str, code: Iterable[str]) -> str:
    """What updates the weights: "C <sha256 of the compiled loop>" where the run's code reaches that loop, else "PyTorch"."""
    found = next((name for name in code if name.endswith("kernel.py")), None) if kind == "cpu" else None
    if found is None:
        return "PyTorch"
    module = importlib.import_module(".".join(Path(found).with_suffix("").parts[1:]))  # named by no import: not every
    library = module.library()  # run depends on it
    return f"C {kept_files.sha256(Path(library._name))}" if library else "PyTorch"


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, the GPU's and the CPU allocator's ways to say that memory ran out."""
    torch = sys.modules.get("torch")
    kinds = (MemoryError, torch.OutOfMemoryError) if torch else MemoryError
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def on_sigterm():
    """Yield a function that says whether SIGTERM has arrived; outside the main thread signals stay as they are."""
    arrived = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.append(True))
    try:
        yield lambda: bool(arrived)
    finally:
        signal.signal(signal.SIGTERM, before)
