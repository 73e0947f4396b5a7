"""Networks that a task needs ready-made: a classifier whose features measure samples, an autoencoder for latents.

Each is a run of its own (prerequisites.network), the same for all seeds and optimizers, so that they are measured alike.
"""

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from lowmem.models import autoencoder, resnet
from lowmem.vision.image_batches import Pictures

MODELS = {"autoencoder": autoencoder, "resnet": resnet}  # those of pipeline/prerequisites.py


def load(data: Pictures, start: dict) -> nn.Module:
    """The network, trained, in evaluation mode, its parameters frozen. The run's random numbers stay untouched.

    start: {config, weights} of its run, as training/job.py puts it into the configuration.
    """
    settings = dict(start["config"]["model"])
    module = MODELS[settings.pop("name")]
    given = {**data.shape, "n_output": data.classes}
    fields = {key: value for key, value in given.items() if key in module.Config.__dataclass_fields__}
    with torch.random.fork_rng(), torch.device(data.device):
        model = module.build(**{**fields, **settings})
    model.load_state_dict(safetensors.torch.load_file(Path(start["weights"]), device=data.device))
    return model.eval().requires_grad_(False)
