"""Images of Hessians for figures.

An image is embedded in the svg unchanged, one pixel per tile, in a dozen colours, so that it stays small.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

DECADES, PER_DECADE = 3, 4
EDGES = np.logspace(-DECADES, 0, DECADES * PER_DECADE + 1)
COLOURS = ListedColormap(colormaps["viridis"](np.linspace(0, 1, DECADES * PER_DECADE)))
NORM = BoundaryNorm(EDGES, COLOURS.N)
SCALE = "colours: |H| relative to the panel's largest, logarithmic over three decades"


def show(axes: Axes, magnitude: np.ndarray, blocks: int | None = None, title: str = "", note: str = "") -> None:
    """A matrix of |H| with the edges of its equal blocks as thin lines. magnitude: (pixels, pixels), not negative."""
    top = float(np.quantile(magnitude, 0.999)) or 1.0  # one bright tile must not darken the rest
    pixels = len(magnitude)
    image = axes.imshow(
        np.clip(magnitude / top, EDGES[0], 0.999),
        cmap=COLOURS,
        norm=NORM,
        interpolation="none",
        extent=(0, pixels, pixels, 0),
        aspect="equal",
    )
    name_apart(image)
    for k in range(1, blocks or 0):
        for line in (axes.axhline, axes.axvline):
            line(k * pixels / blocks, color="white", linewidth=0.5, alpha=0.35 if blocks > 12 else 0.6)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.set_title(title)
    axes.set_xlabel(note, fontsize=8)


def name_apart(image: AxesImage) -> None:
    """An id by place: the svg would give equal pictures equal ids, which a page may not hold twice."""
    axes = image.axes
    image.set_gid(f"picture{axes.figure.axes.index(axes)}.{axes.images.index(image)}")


def colour_bar(drawn: Figure, axes) -> None:
    """One scale for all panels, since each is relative to its own largest value."""
    bar = drawn.colorbar(ScalarMappable(NORM, COLOURS), ax=axes, shrink=0.8, pad=0.01, aspect=30)
    bar.set_ticks([10.0**-k for k in range(DECADES + 1)], labels=["1", "0.1", "0.01", "0.001"][: DECADES + 1])
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label("|H| / panel's largest")
