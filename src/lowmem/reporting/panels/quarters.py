"""Vision, diffusion and graph runs as figures: a metric over training, and samples of the trained models."""

import math

import numpy as np

from lowmem.reporting import plots
from lowmem.reporting.numbers.quarters import Metric, series
from lowmem.reporting.panels.losses import loss_curves
from lowmem.reporting.runs import Run


def curves(
    axes, groups: dict[str, list[Run]], metric: Metric, by: str, xlabel: str, title: str, band: bool = False
) -> None:
    """The metric over training, mean and seeds (or, as a band, the interval of the mean), one line for each optimizer."""

    def scaled(run: Run) -> list[tuple[float, float]]:
        return [(x, metric.scale * y) for x, y in series(run, metric, by)]

    loss_curves(axes, groups, start=0.25, curve=scaled, band=band)
    axes.set_title(title)
    if axes.has_data():
        axes.set(xlabel=xlabel, ylabel=metric.label)


def sample_strip(axes, groups: dict[str, list[Run]]) -> None:
    """Samples of the first seed of each group, four by four, side by side under their labels; or why there are none."""
    axes.set_axis_off()
    found = {label: first.arrays().get("samples") for label, runs in groups.items() for first in runs[:1]}
    found = {label: tiles(samples) for label, samples in found.items() if samples is not None}
    if not found:
        reasons = [runs[0].reason for runs in groups.values() if runs and runs[0].reason]
        plots.empty(axes, reasons[0] if reasons else "not run: no samples")
        return
    side = max(len(picture) for picture in found.values())
    gap, strip, places = side // 6, [], {}
    for label, picture in found.items():
        picture = picture.repeat(side // len(picture), 0).repeat(side // len(picture), 1)
        places[label] = sum(part.shape[1] for part in strip) + picture.shape[1] / 2
        strip += [picture, np.zeros((len(picture), gap, 4), np.uint8)]
    height = max(len(part) for part in strip)
    axes.imshow(np.concatenate([np.pad(p, ((0, height - len(p)), (0, 0), (0, 0))) for p in strip[:-1]], 1))
    for label, x in places.items():
        axes.text(x, -0.04 * height, label, ha="center", va="bottom", fontsize=8)


def tiles(samples: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 -> one square RGBA image, (k H, k W, 4), with k^2 <= N samples."""
    count, height, width, channels = samples.shape
    side = math.isqrt(count)
    shown = samples[: side**2].reshape(side, side, height, width, channels).transpose(0, 2, 1, 3, 4)
    shown = np.broadcast_to(shown.reshape(side * height, side * width, channels), (side * height, side * width, 3))
    return np.concatenate([shown, np.full((*shown.shape[:2], 1), 255, np.uint8)], 2)
