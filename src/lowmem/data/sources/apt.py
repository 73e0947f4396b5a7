"""A Debian package as a file: `apt-get download`, nothing is installed."""

from collections.abc import Callable
from pathlib import Path

from lowmem.data.sources import client
from lowmem.errors import Failed


def get(source: dict, into: Path, work: Path, show: Callable[[int], None]) -> list[str]:
    """Keys: apt "name=version", file.

    A machine whose package lists are missing or old finds nothing: then lists are fetched once into the scratch
    folder, which needs no root and leaves the machine's own lists alone.
    """
    [name] = source["files"]
    program = client.need("apt-get")
    download = ["download", "-q", source["apt"]]
    try:
        client.run([program, *download], work, show)
    except Failed as error:
        if str(error).startswith("no network"):
            raise
        for folder in ("lists/partial", "cache/archives/partial"):
            (work / folder).mkdir(parents=True)
        private = ["-o", f"Dir::State::Lists={work / 'lists'}", "-o", f"Dir::Cache={work / 'cache'}"]
        private += ["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1"]
        private += ["-o", "APT::Update::Error-Mode=any"]  # else an update without network ends well
        client.run([program, *private, "update", "-q"], work, show)
        client.run([program, *private, *download], work, show)
    return client.collect(work, into, "*.deb", name)
