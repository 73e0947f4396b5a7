"""A package for Node.js as a file: `npm pack`, whose scripts are never run."""

from collections.abc import Callable
from pathlib import Path

from lowmem.data.sources import client


def get(source: dict, into: Path, work: Path, show: Callable[[int], None]) -> list[str]:
    """Keys: npm "name@version", file."""
    [name] = source["files"]
    arguments = [
        "pack",
        "--ignore-scripts",
        "--loglevel=error",
        "--no-update-notifier",
        "--pack-destination",
        str(work),
    ]
    arguments += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
    client.run([client.need("npm"), *arguments, source["npm"]], work, show)
    return client.collect(work, into, "*.tgz", name)
