"""Checkpoints that survive a kill at any moment: a new one replaces the old one by renaming.

One folder checkpoint-<config hash>/ per run, removed when the run's record is final. Files are torch archives of
tensors and plain values, each with its seal (kept_files.py) beside it; one whose bytes changed is not read. They are read with
weights_only=True, so that no code in them runs.
"""

import re
import shutil
from pathlib import Path

from lowmem import kept_files
from lowmem.errors import Failed
from lowmem.progress import say


def place(folder: Path, config_hash: str) -> Path:
    """The checkpoint folder of a configuration."""
    return Path(folder) / f"checkpoint-{config_hash}"


def save(path: Path, step: int, state: dict) -> None:
    """Write step<step>.pt, then remove older ones; Failed in one line when the disk is full, the older ones kept."""
    import torch

    target = path / f"step{step}.pt"
    try:
        with kept_files.writing_archive(target) as file:
            torch.save(state, file)
    except RuntimeError as error:  # how torch's writer reports a failed write
        raise Failed(f"cannot write {target}: {str(error).splitlines()[0]}; free space or check permissions") from error
    for old in path.iterdir():
        if old not in (target, kept_files.seal_of(target)) and not old.is_dir():
            old.unlink()


def load(path: Path) -> dict | None:
    """The newest intact state, tensors on the CPU; None when there is none."""
    import torch

    steps = {int(file.stem[4:]): file for file in path.glob("step*.pt") if re.fullmatch(r"step\d{1,18}", file.stem)}
    for step in sorted(steps, reverse=True):
        try:
            kept_files.check(steps[step])
            return torch.load(steps[step], map_location="cpu", weights_only=True)
        except Exception as error:  # a file of another PyTorch version may raise nearly anything
            say(f"{steps[step]} cannot be used ({type(error).__name__}); trying an older one or starting over")
    return None


def remove(path: Path) -> None:
    """Remove a checkpoint, if it is there."""
    shutil.rmtree(path, ignore_errors=True)
