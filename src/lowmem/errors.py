"""Errors that a user sees as one line: what is wrong, what to do."""

import difflib


class Misuse(Exception):
    """The caller asked for something that cannot be: bad configuration, bad argument. Exit code 2."""


class Failed(Exception):
    """The request was fine but could not be carried out: no network, full disk, corrupt file. Exit code 1."""


class Diverged(Failed):
    """Training diverged to a non-finite loss or gradient: a result, so the run is not repeated."""


def one_line(error: BaseException, most: int = 160) -> str:
    """An error's message on one line of bounded length; its type if it has no message."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def nearest(name: str, choices) -> str:
    """' (did you mean X?)' when a choice is close to name, else the choices, 20 at most: the end of an error line."""
    choices = sorted(str(c) for c in choices)
    close = difflib.get_close_matches(str(name), choices, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    more = f" and {len(choices) - 20} more" if len(choices) > 20 else ""
    return f" (choose from: {', '.join(choices[:20])}{more})"


def refuse_unknown(given, known, where: str) -> None:
    """Misuse for the first key of `given` that is not in `known`. where: what holds the keys, e.g. measure."""
    unknown = sorted(map(str, set(given) - set(known)))
    if unknown:
        raise Misuse(f"{where}: unknown key {unknown[0][:80]!r}{nearest(unknown[0], known)}")
