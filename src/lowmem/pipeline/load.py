"""How busy other programs kept the cores of a run. Its times are valid only if they left it the cores it asks for."""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, and stolen by another virtual machine; proc(5)
LEAST = 0.5  # seconds: below, the clock of /proc/stat is too coarse


def start() -> dict | None:
    """Clock, busy seconds of the cores that this process may use, and its own CPU seconds; None where the system has none."""
    try:
        cores = os.sched_getaffinity(0)
        rows = (line.split() for line in STAT.read_text().splitlines() if line.startswith("cpu"))
        ticks = [
            sum(int(row[1 + i]) for i in BUSY) for row in rows if row[0][3:].isdigit() and int(row[0][3:]) in cores
        ]
    except (OSError, AttributeError, IndexError, ValueError):  # not Linux
        return None
    busy = sum(ticks) / os.sysconf("SC_CLK_TCK")
    return {"at": time.monotonic(), "cores": len(ticks), "busy": busy, "own": sum(os.times()[:4])}


def since(before: dict) -> dict | None:
    """{cores, own, others}: cores in use on average since `start`, by this process and by others; None for too short a time."""
    after = start()
    if not after or (seconds := after["at"] - before["at"]) < LEAST:
        return None
    own, busy = after["own"] - before["own"], after["busy"] - before["busy"]
    return {
        "cores": after["cores"],
        "own": round(own / seconds, 2),
        "others": round(max(0.0, busy - own) / seconds, 2),
    }
