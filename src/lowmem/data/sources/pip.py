"""A Python package as a file: `pip download`, wheels first; an sdist only with its hash checked before pip opens it."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from lowmem.data.sources import client
from lowmem.errors import Failed


def command() -> list[str]:
    """This Python's pip, else the one on PATH (environments made without pip)."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    return [client.need("pip")]


def get(source: dict, into: Path, work: Path, show: Callable[[int], None]) -> list[str]:
    """Keys: pip "name==version", file; for a platform wheel platform, python, implementation, abi; sdist: true.

    pip builds the metadata of an sdist, which runs its setup.py: hence --require-hashes, so that only the very file
    that was looked at when it was pinned gets that far.
    """
    [name] = source["files"]
    arguments = ["download", "--no-deps", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    arguments += ["--retries", "2", "--timeout", "30", "--dest", str(work)]
    if source.get("sdist"):
        pinned = source["files"][name]["sha256"]
        if not pinned:
            raise Failed("an sdist needs a pinned sha256")
        (work / "requirements.txt").write_text(f"{source['pip']} --hash=sha256:{pinned}\n")
        arguments += ["--no-binary", source["pip"].split("==")[0], "--require-hashes"]
        arguments += ["--requirement", str(work / "requirements.txt")]
        pattern = "*.tar.gz"
    else:
        arguments += ["--only-binary=:all:"]
        for key, option in (
            ("platform", "--platform"),
            ("python", "--python-version"),
            ("implementation", "--implementation"),
            ("abi", "--abi"),
        ):
            if key in source:
                arguments += [option, str(source[key])]
        arguments += [source["pip"]]
        pattern = "*.whl"
    client.run(command() + arguments, work, show)
    return client.collect(work, into, pattern, name)
