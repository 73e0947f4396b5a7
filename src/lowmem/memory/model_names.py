"""Names of models that can be planned; without PyTorch."""

from __future__ import annotations

import ast
from pathlib import Path

from lowmem.errors import Misuse, nearest
from lowmem.models import _hub

FILES = ("llama", "gpt2")  # the language models of lowmem/models


def check(model: str) -> None:
    """Misuse, naming the nearest known model, for a name that is not one of ours and cannot be one of Hugging Face."""
    known_sizes = sizes()
    file, _, size = model.rpartition(":")
    if model in FILES or (size in known_sizes and file in ("", known_sizes[size])):
        return
    if is_hub(model):
        _hub.check_name(model)
        return
    known = [*FILES, *(f"{file}:{size}" for size, file in known_sizes.items())]
    close = nearest(model, [*known, *known_sizes])  # a size is known by itself too; as a list, the full names say more
    hint = close if "did you mean" in close else nearest(model, known)
    raise Misuse(
        f"unknown model {model[:80]!r}{hint}; a Hugging Face name has a slash, and a folder with a config.json works too"
    )


def sizes() -> dict[str, str]:
    """{size: file} of our models: the keys of SIZES in each file, read from its source, so that nothing is imported."""
    found = {}
    for file in FILES:
        text = (Path(_hub.__file__).parent / f"{file}.py").read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SIZES":
                found |= {key.value: file for key in node.value.keys}
    return found


def is_hub(model: str) -> bool:
    """Whether a name is one of the Hugging Face hub, or a folder."""
    return "/" in model or Path(model).is_dir()
