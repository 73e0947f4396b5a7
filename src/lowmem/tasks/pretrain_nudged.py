"""Pre-training as the task pretrain has it, from first weights a relative 1e-6 or so beside those of the seed.

Training amplifies small differences: what two runs of one method end apart is the floor under every distance between methods.
"""

from pathlib import Path

import torch

from lowmem.errors import Misuse
from lowmem.tasks import pretrain
from lowmem.training.task import Task


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """measure.nudge: each first weight is multiplied by 1 + nudge * z with z standard normal; the rest as in pretrain.

    Batches are those of the seed, and z is the same for every seed. Misuse unless nudge lies between 0 and 0.1.
    """
    measure = dict(config.get("measure") or {})
    nudge = measure.pop("nudge", None)
    if not isinstance(nudge, float) or not 0 < nudge < 0.1:
        raise Misuse(
            f"measure.nudge is {nudge!r}; task pretrain_nudged needs a number between 0 and 0.1, such as 1.0e-6"
        )
    task = pretrain.build({**config, "measure": measure}, seed, root, device)
    generator = torch.Generator().manual_seed(0)  # of its own: the global one decides what the run draws next
    with torch.no_grad():
        for p in task.model.parameters():
            p.mul_(1 + nudge * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device))
    return task
