"""The progress line of a training run, and the line that ends it."""

import statistics
import sys
import time


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
