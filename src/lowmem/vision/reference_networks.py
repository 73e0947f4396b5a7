"""Networks that a task needs ready-made: a classifier whose features measure samples, an autoencoder for latents.

Each is trained once with AdamW on the run's own data, whichever optimizer the run is about, and kept under
data/prepared/networks by a hash of everything that decides it.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lowmem import files, kept_files, provenance
from lowmem.errors import Misuse, nearest
from lowmem.models import autoencoder, resnet
from lowmem.optim.adamw import AdamW
from lowmem.training.lr_schedule import lr_at
from lowmem.vision.image_batches import Pictures

KINDS = {"autoencoder": autoencoder, "resnet": resnet}
SEED = 0  # one network for all seeds and optimizers, so that they are measured alike


def ready(root: Path, data: Pictures, settings: dict) -> nn.Module:
    """The network, trained, in evaluation mode, its parameters frozen.

    settings: {model: {name, ...}, steps, batch_size, lr}. A model with encode() learns to repeat pictures (mean squared
    error), any other one to classify them. The run's random numbers stay untouched.
    """
    name = settings["model"]["name"]
    if name not in KINDS:
        raise Misuse(f"no network of kind {name!r} is kept ready{nearest(name, KINDS)}")
    inputs = {path.name: provenance.hash_of(root, path.relative_to(root).as_posix()) for path in data.inputs}
    code = [Path(__file__), provenance.PACKAGE / f"models/{name}.py", provenance.PACKAGE / "vision/image_batches.py"]
    changes = ("augment", "pool", "pad", "crop", "brightest", "mean", "deviation")
    shape = {key: getattr(data, key) for key in changes}
    known = json.dumps(
        [settings, shape, inputs, [provenance.code_hash(path) for path in code], data.device], sort_keys=True
    )
    place = root / "data/prepared/networks" / f"{name}-{hashlib.sha256(known.encode()).hexdigest()[:16]}.pt"
    module = KINDS[name]
    given = {**data.shape, "n_output": data.classes}
    fields = {key: value for key, value in given.items() if key in module.Config.__dataclass_fields__}
    own = {key: value for key, value in settings["model"].items() if key != "name"}
    with torch.random.fork_rng(), files.locked(place):
        torch.manual_seed(SEED)
        with torch.device(data.device):
            model = module.build(**{**fields, **own})
        if kept_files.is_good(place):
            model.load_state_dict(torch.load(place, map_location=data.device, weights_only=True))
        else:
            train(model, data, settings)
            with kept_files.writing(place) as file:
                torch.save(model.state_dict(), file)
    return model.eval().requires_grad_(False)


def train(model: nn.Module, data: Pictures, settings: dict) -> None:
    """settings["steps"] updates, warm-up over the first twentieth and a cosine to 0."""
    steps = settings["steps"]
    optimizer = AdamW(model, lr=settings["lr"])
    schedule = {"name": "cosine", "warmup_steps": max(1, steps // 20)}
    with torch.enable_grad(), torch.autocast(data.device, enabled=False):  # in fp32 also from inside a bf16 run
        for step in range(steps):
            pictures, labels = data.train(SEED, step, settings["batch_size"])
            if hasattr(model, "encode"):
                loss = F.mse_loss(model(pictures), pictures)
            else:
                loss = F.cross_entropy(model(pictures), labels)
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step + 1, settings["lr"], schedule, steps)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
