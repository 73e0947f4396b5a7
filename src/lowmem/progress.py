"""One plain progress line on stderr: updated in place on a terminal, first and last state only elsewhere."""

import statistics
import sys
import time
from collections.abc import Callable


def say(text: str) -> None:
    """One line to stderr, in place of an unfinished progress line."""
    print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def line(label: str, total: int | None = None, seconds: float = 0.2) -> Callable[[int], None]:
    """A function show(done_bytes) for one download; call show.end(done) once, when it is over.

    total: expected bytes if known. seconds: least time between two updates on a terminal.
    """
    live = sys.stderr.isatty()
    last = 0.0
    if not live:
        say(label + (f" ({megabytes(total)})" if total else ""))

    def text(done: int) -> str:
        return f"{label}  {megabytes(done)}" + (f" of {megabytes(total)}" if total else "")

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
        left = clock((steps - step) * seconds)
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


def clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary(made: dict) -> str:
    """The end of a run's line: its last numbers and its speed."""
    numbers = [f"{key} {value:.4f}" for key, value in made["metrics"]["final"].items() if isinstance(value, float)]
    for key, value in (made["throughput"] or {}).items():
        if key.endswith("_per_s"):
            numbers.append(f"{value:,.0f} {key.replace('_per_s', '/s')}")
    return ", ".join(numbers[:5])
