"""The command line: `lowmem ...` or `python -m lowmem ...`. Exit codes: 0 done, 1 failed, 2 misuse."""

import io
import os
import select
import signal
import sys

from lowmem.cli import commands
from lowmem.cli.arguments import parser
from lowmem.errors import Failed, Misuse
from lowmem.pipeline.experiments import find_root

PACKAGES = {"yaml": "pyyaml"}  # modules whose package has another name
LONGEST = 1500  # characters in an error line


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors become one line on stderr.

    argv: arguments without the program's name (default: sys.argv[1:]). Returns the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows only some characters shows ? for others
            stream.reconfigure(errors="replace")
    try:
        arguments = parser().parse_args(argv)
        about_model = arguments.run is commands.plan and (arguments.explain or arguments.model is not None)
        no_checkout = about_model or arguments.run is commands.blocks  # these also work in an installed package
        code = arguments.run(None if no_checkout else find_root(), arguments) or 0
        print(end="", flush=True)  # not at interpreter exit, where a closed pipe would print a traceback
        return code
    except Misuse as error:
        return report_error(error, 2)
    except Failed as error:
        return report_error(error, 1)
    except OSError as error:  # a vanished file, a full disk, a system limit
        if isinstance(error, BrokenPipeError) and reader_left():
            return 1
        place = f"{str(error.filename)[:200]}: " if error.filename else ""
        if isinstance(error, FileExistsError) and error.filename and not os.path.exists(error.filename):
            return report_error(f"{place}a link to nothing; remove it, or make what it leads to", 1)
        return report_error(
            f"{place}{error.strerror or error}; check that it is there, permissions, space and limits", 1
        )
    except MemoryError:
        return report_error("this machine has too little memory left; free some, or ask for less", 1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would interrupt what libraries do at exit
        return report_error("interrupted; call again to continue", 130)
    except Exception as error:  # a bug: still one line, and where to look
        if os.environ.get("LOWMEM_TRACEBACK"):
            raise
        absent = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else "lowmem"
        if absent != "lowmem":
            return report_error(
                f"this needs {absent}, which is not installed; pip install {PACKAGES.get(absent, absent)}", 1
            )
        return report_error(f"unexpected {type(error).__name__}: {error}; LOWMEM_TRACEBACK=1 shows where", 1)


def reader_left() -> bool:
    """Whether nobody reads stdout any more, as after `| head`; then the rest of it goes nowhere."""
    asked = select.poll()
    asked.register(1, 0)
    left = any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return left


def report_error(error: Exception | str, code: int) -> int:
    """Print an error as one line of bounded length, and give the exit code."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    print(f"lowmem: {line if len(line) <= LONGEST else line[: LONGEST - 3] + '...'}", file=sys.stderr)
    return code
