"""Learn to denoise images (DDPM) or their latents; samples and their distance from real images."""

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem import models
from lowmem.errors import Misuse, refuse_unknown
from lowmem.training.task import Task, micro_batch
from lowmem.vision import diffusion, image_batches, reference_networks

PICTURE_KEYS = {"augment", "pool", "pad_to", "crop"}
KEYS = PICTURE_KEYS | {"noise_steps", "samples", "sample_steps", "classifier", "latent", "drop_labels"}
SHOWN = 16  # samples that are kept as images
CHUNK = 128  # samples at once


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """Task from config keys data, model, train and measure.

    measure: augment, pool, pad_to, crop (see image_batches.py); noise_steps; samples and sample_steps (how many images are
    sampled at the end, and in how many steps); classifier and latent (reference_networks.py: whose features measure the
    samples; the autoencoder whose latents are diffused, absent: pixels); drop_labels: share of training labels that is hidden.

    The loss is the mean squared error of the predicted noise. train.eval_batches batches of the test set, with fixed noise and
    times, give val_loss.
    """
    settings = {
        "noise_steps": 1000,
        "samples": 256,
        "sample_steps": 25,
        "drop_labels": 0.1,
        **config.get("measure", {}),
    }
    check(config, settings)
    train = config["train"]
    micro = micro_batch(train)
    changes = {key: value for key, value in settings.items() if key in PICTURE_KEYS}
    data = image_batches.load(root, config["data"], device, changes, scale="signed")
    latents = Latents(root, data, settings.get("latent"), micro)
    with torch.device(device):
        model = models.build(config["model"], **latents.shape, n_class=data.classes)
    kept = diffusion.kept_share(settings["noise_steps"], device)
    known, wanted = len(data.arrays["test_labels"]), micro * train.get("eval_batches", 1)
    if known < wanted:
        raise Misuse(f"{known} test images are fewer than the {wanted} of train.eval_batches; lower it")

    def with_noise(images: Tensor, labels: Tensor, generator: np.random.Generator, times=None) -> tuple[Tensor, ...]:
        """(noisy, times, labels, noise): drawn on the CPU, so that every device sees the same."""
        x = latents.encode(images)
        noise = torch.from_numpy(generator.standard_normal(x.shape, dtype=np.float32)).to(device)
        drawn = generator.integers(0, len(kept), len(x)) if times is None else times
        times = torch.from_numpy(drawn).to(device)
        return diffusion.noisy(x, noise, times, kept), times, labels, noise

    def batch(index: int) -> tuple[Tensor, ...]:
        generator = np.random.default_rng([seed, 2, index])
        found = with_noise(*data.train(seed, index, micro), generator)
        hidden = torch.from_numpy(generator.random(micro) < settings["drop_labels"]).to(device)
        return found[0], found[1], torch.where(hidden, data.classes, found[2]), found[3]

    def loss(model: torch.nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        *given, noise = batch
        return F.mse_loss(model(*given).float(), noise)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        total, count = 0.0, train.get("eval_batches", 1)
        for number in range(count):
            times = (np.arange(micro) + (number + 0.5) / count) * len(kept) / micro  # evenly over all times
            generator = np.random.default_rng([3, number])
            total += loss(
                model, with_noise(*data.test(number * micro, micro), generator, times.astype(np.int64))
            ).item()
        return {"val_loss": total / count}

    def finish(model: torch.nn.Module) -> tuple[dict, dict]:
        made = samples(model, data, latents, kept, settings, np.random.default_rng([seed, 4]))
        with torch.autocast(device, enabled=False):  # measured in fp32, whatever the training precision
            found = {**quality(root, data, settings, made), **latents.numbers()}
        shown = ((made[:SHOWN].permute(0, 2, 3, 1) * data.deviation + data.mean) * 255).round().clamp(0, 255)
        return found, {"samples": shown.to(torch.uint8).cpu().numpy()}

    return Task(model, batch, loss, evaluate, units=micro, unit="image", inputs=data.inputs, finish=finish)


def check(config: dict, settings: dict) -> None:
    """Misuse for what a configuration lacks or misspells."""
    if "data" not in config or "model" not in config:
        raise Misuse("task diffuse needs data and model in its configuration")
    refuse_unknown(settings, KEYS, "measure")
    if not 1 <= settings["sample_steps"] <= settings["noise_steps"] or settings["samples"] < SHOWN:
        raise Misuse(f"measure: sample_steps lies between 1 and noise_steps, and samples is at least {SHOWN}")


class Latents:
    """What is diffused: the images themselves, or an autoencoder's latents divided by their standard deviation."""

    def __init__(self, root: Path, data: image_batches.Pictures, settings: dict | None, batch: int):
        self.data, self.network = data, reference_networks.load(data, settings) if settings else None
        self.shape, self.scale, self.bound = data.shape, 1.0, 1.0
        if self.network:
            with torch.no_grad():
                x = self.network.encode(data.test(0, 256)[0])
            self.scale, self.shape = x.std().item(), {"n_channel": x.shape[1], "image_size": x.shape[2]}
            self.bound = (x / self.scale).abs().max().item()

    def encode(self, images: Tensor) -> Tensor:
        """images (B, C, S, S) -> what is diffused: themselves, or scaled latents."""
        with torch.no_grad(), torch.autocast(self.data.device, enabled=False):
            return self.network.encode(images) / self.scale if self.network else images

    def decode(self, x: Tensor) -> Tensor:
        """What was diffused -> images in [-1, 1]."""
        with torch.no_grad(), torch.autocast(self.data.device, enabled=False):
            return self.network.decode(x * self.scale).clamp(-1, 1) if self.network else x

    def numbers(self) -> dict[str, float]:
        """Reconstruction error of the autoencoder on test images; empty without one."""
        images = self.data.test(0, 256)[0]
        return {"autoencoder_mse": F.mse_loss(self.network(images), images).item()} if self.network else {}


def samples(model, data, latents: Latents, kept: Tensor, settings: dict, generator: np.random.Generator) -> Tensor:
    """(samples, C, S, S): the same starting noise and labels for every optimizer of a seed."""
    made, shape = [], (latents.shape["n_channel"], latents.shape["image_size"], latents.shape["image_size"])
    for first in range(0, settings["samples"], CHUNK):
        count = min(CHUNK, settings["samples"] - first)
        start = torch.from_numpy(generator.standard_normal((count, *shape), dtype=np.float32)).to(data.device)
        labels = (torch.arange(first, first + count) % data.classes).to(data.device)
        predict = functools.partial(model, labels=labels)
        made.append(latents.decode(diffusion.sample(predict, start, kept, settings["sample_steps"], latents.bound)))
    return torch.cat(made)


def quality(root: Path, data: image_batches.Pictures, settings: dict, made: Tensor) -> dict[str, float]:
    """Distance of the samples from test images in our classifier's features, and its score; floor: of training images.

    Empty without measure.classifier.
    """
    if not settings.get("classifier"):
        return {}
    network, count = reference_networks.load(data, settings["classifier"]), len(made)

    def features(images: Tensor) -> np.ndarray:
        parts = [network.features(part) for part in images.split(CHUNK)]
        return torch.cat(parts).double().cpu().numpy()

    real = features(data.test(0, 4 * count)[0])
    other = features(data.take("train", np.arange(count))[0])
    logits = torch.cat([network(part) for part in made.split(CHUNK)]).double().cpu().numpy()
    distances = {"frechet": diffusion.frechet(features(made), real), "frechet_floor": diffusion.frechet(other, real)}
    return {**distances, "class_score": diffusion.class_score(logits)}
