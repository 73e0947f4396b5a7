"""One plain progress line on stderr: updated in place on a terminal, first and last state only elsewhere."""

import statistics
import sys
import time
from collections.abc import Callable

ROOM = 0.25  # cores that a system keeps busy anyway


def say(text: str) -> None:
    """One line to stderr, in place of an unfinished progress line."""
    print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Two digits are all that an estimate deserves: 45 s, 12 min, 3.5 h, 12 days."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h"), (float("inf"), 86400, "days")):
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}" if seconds / unit < 10 else f"{seconds / unit:.0f} {name}"
    raise AssertionError("unreachable")


def size(count: float | None) -> str:
    """Bytes to three digits: 12.3 kB, 45.6 MB, 7 GB, 1.5 TB; None: "size unknown"."""
    if count is None:
        return "size unknown"
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    unit, name = next((u, n) for u, n in units if count >= 0.9995 * u or u == 1e3)  # 999.7 kB is 1 MB, not 1e+03 kB
    return f"{count / unit:.3g} {name}"


def line(label: str, total: int | None = None, seconds: float = 0.2) -> Callable[[int], None]:
    """A function show(done_bytes) for one download; call show.end(done) once, when it is over.

    total: expected bytes if known. seconds: least time between two updates on a terminal.
    """
    live = sys.stderr.isatty()
    last = 0.0
    if not live:
        say(label + (f" ({size(total)})" if total else ""))

    def text(done: int) -> str:
        return f"{label}  {size(done)}" + (f" of {size(total)}" if total else "")

    def show(done: int) -> None:
        nonlocal last
        if live and time.monotonic() - last >= seconds:
            last = time.monotonic()
            print(f"\r\x1b[K{text(done)}", end="", file=sys.stderr, flush=True)

    def end(done: int) -> None:
        if live:
            print(f"\r\x1b[K{text(done)}", file=sys.stderr, flush=True)

    show.end = end
    return show


def progress(label: str, steps: int):
    """A function that shows step, loss, speed and time left: in place on a terminal, every half minute elsewhere."""
    live = sys.stderr.isatty()
    last = time.monotonic()

    def show(step: int, loss: float, units: int, times: list[float]) -> None:
        nonlocal last
        if time.monotonic() - last < (0.2 if live else 30):
            return
        last = time.monotonic()
        seconds = statistics.fmean(times[-20:])
        left = duration((steps - step) * seconds)
        text = f"{label}: step {step}/{steps} loss {loss:.4f} {units / seconds:,.0f}/s, {left} left"
        print(f"\r\x1b[K{text}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)

    return show


def share(speeds: list[dict | None]) -> None:
    """Say how much of the time of the runs just made went into training steps; the rest is set-up and evaluation."""
    known = [speed for speed in speeds if speed and "steps_s" in speed]
    if known:
        steps, total = (sum(speed[key] for speed in known) for key in ("steps_s", "run_s"))
        print(
            f"{len(known)} runs, {total:.0f} s, {steps / total:.0%} of it in training steps",
            file=sys.stderr,
            flush=True,
        )


def summary(made: dict) -> str:
    """The end of a run's line: its last numbers and its speed."""
    numbers = [f"{key} {value:.4f}" for key, value in made["metrics"]["final"].items() if isinstance(value, float)]
    for key, value in (made["throughput"] or {}).items():
        if key.endswith("_per_s"):
            numbers.append(f"{value:,.0f} {key.replace('_per_s', '/s')}")
    return ", ".join([*numbers[:5], *filter(None, [busy_cores(made)])])


def busy_cores(made: dict) -> str | None:
    """'busy machine: others used 1.7 of 2 cores', where a record tells times and others took cores that its run asks for."""
    load, config, device = made.get("load"), made.get("config") or {}, made.get("device") or {}
    if not load or not (made.get("throughput") or "rounds" in (config.get("measure") or {})):
        return None
    if load["others"] <= load["cores"] - min(device.get("threads") or 1, load["cores"]) + ROOM:
        return None
    return f"busy machine: others used {load['others']:.1f} of {load['cores']} cores"
