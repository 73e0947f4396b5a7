"""Checkpoints that survive a kill at any moment: a new one replaces the old one by renaming.

One folder checkpoint-<config hash>/ per run, removed when the run's record is final. Files are torch archives of
tensors and plain values, read with weights_only=True, so that no code in them runs.
"""

import shutil
from pathlib import Path

from lowmem.errors import Failed
from lowmem.files import atomic_path
from lowmem.progress import say


def place(folder: Path, config_hash: str) -> Path:
    return Path(folder) / f"checkpoint-{config_hash}"


def save(path: Path, step: int, state: dict) -> None:
    """Write step<step>.pt, then remove older ones; Failed in one line when the disk is full, the older ones kept."""
    import torch

    target = path / f"step{step}.pt"
    try:
        with atomic_path(target) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's writer reports a failed write so
        raise Failed(f"cannot write {target}: {str(error).splitlines()[0]}; free space or check permissions") from error
    for old in path.iterdir():
        if old != target:
            old.unlink()


def load(path: Path) -> dict | None:
    """The newest state that can be read, tensors on the CPU; None when there is none."""
    import torch

    steps = {int(file.stem.removeprefix("step")): file for file in path.glob("step*.pt")}
    for step in sorted(steps, reverse=True):
        try:
            return torch.load(steps[step], map_location="cpu", weights_only=True)
        except Exception as error:
            say(f"{steps[step]} cannot be read ({type(error).__name__}); trying an older one or starting over")
    return None


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
