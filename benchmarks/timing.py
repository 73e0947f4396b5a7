"""What the benchmarks print of paired timings (lowmem.memory.measured_peak.in_turn): medians and ratios round by round."""

import os
import platform
import statistics

import torch


def ratios(seconds: dict[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """(median, lowest, highest) over rounds of the time of `name` divided by that of `base`."""
    values = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    return statistics.median(values), min(values), max(values)


def table(rows: list[tuple], header: tuple) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def machine() -> str:
    """One line about what ran this: processor, threads, PyTorch."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as f:
            name = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()} cores{gpu}, PyTorch {torch.__version__}"
