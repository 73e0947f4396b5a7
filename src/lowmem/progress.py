"""One plain progress line on stderr: updated in place on a terminal, first and last state only elsewhere."""

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
