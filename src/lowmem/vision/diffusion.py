"""Noise in, noise out: the forward process of DDPM, a sampler, and how far samples are from real images."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def kept_share(steps: int, device: str = "cpu") -> Tensor:
    """alpha-bar: how much of the image's variance is left at each time 0 ... steps - 1, (steps,).

    Variances of the noise rise linearly from 1e-4 to 0.02 (Ho et al., section 4), rescaled to the same total for any
    number of steps.
    """
    scale = 1000 / steps
    return torch.cumprod(1 - torch.linspace(1e-4 * scale, min(0.02 * scale, 0.999), steps), 0).to(device)


def noisy(pictures: Tensor, noise: Tensor, times: Tensor, kept: Tensor) -> Tensor:
    """Images (B, C, S, S) noised to times (B,): equation 4 of Ho et al."""
    share = kept[times][:, None, None, None]
    return share.sqrt() * pictures + (1 - share).sqrt() * noise


def sample(predict: Callable[[Tensor, Tensor], Tensor], start: Tensor, kept: Tensor, steps: int, clip: float) -> Tensor:
    """From noise to images in fewer steps, without new noise (DDIM, Song et al., arXiv 2010.02502, equation 12).

    predict(images, times): the noise in them. clip: bound of pixel values, applied to each estimate of the images.
    """
    times = torch.linspace(len(kept) - 1, 0, steps).round().long().tolist()
    x = start
    for now, later in zip(times, [*times[1:], None], strict=True):
        noise = predict(x, torch.full((len(x),), now, device=x.device)).to(x.dtype)
        guess = ((x - (1 - kept[now]).sqrt() * noise) / kept[now].sqrt()).clamp(-clip, clip)
        if later is None:
            return guess
        noise = (x - kept[now].sqrt() * guess) / (1 - kept[now]).sqrt()  # that of the clipped guess
        x = kept[later].sqrt() * guess + (1 - kept[later]).sqrt() * noise
    return x


def frechet(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Distance of two clouds of features (N, F), (M, F), each modelled as a normal distribution (Heusel et al., 2017).

    The formula of the FID. Its value depends on the feature network: with any other than Inception it is not
    the FID.
    """
    (mean1, spread1), (mean2, spread2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (ours, theirs))
    root = matrix_root(spread1)
    both = np.linalg.eigvalsh(root @ spread2 @ root).clip(min=0)
    return float(((mean1 - mean2) ** 2).sum() + np.trace(spread1) + np.trace(spread2) - 2 * np.sqrt(both).sum())


def matrix_root(symmetric: np.ndarray) -> np.ndarray:
    """Square root of a symmetric matrix without negative eigenvalues, (n, n)."""
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def class_score(logits: np.ndarray) -> float:
    """exp of the mean divergence of p(class | image) from its mean, (N, classes) -> 1 ... classes: sure and varied is high.

    The formula of the Inception score (Salimans et al., 2016); with another network it is not that score.
    """
    logs = logits - logits.max(1, keepdims=True)
    logs = logs - np.log(np.exp(logs).sum(1, keepdims=True))
    p = np.exp(logs)
    return float(np.exp((p * (logs - np.log(p.mean(0) + 1e-12))).sum(1).mean()))
