"""What a reader sees on pointing at a figure: every drawn point with its place in the picture, its values and its run."""

import math
import re

from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from lowmem.reporting import display, plots

MOST = 60  # points of one line; a longer one is thinned evenly


def series(drawn: Figure) -> list[dict]:
    """[{"panel", "name", "x", "y", "at": ["left top|x|y", ...]}] of a figure that plots.svg has settled.

    left, top: in points (1/72 inch) from the upper left corner, the unit of the svg's viewBox. name: the line's label, whose
    leading underscore (matplotlib's sign for "not in the legend") is dropped; else the optimizer of its colour.
    """
    found = []
    for axes in drawn.axes:
        words = {"panel": axes.get_title("left") or axes.get_title(), "x": axes.get_xlabel(), "y": axes.get_ylabel()}
        for name, xy in [*lines(axes), *bars(axes)]:
            if at := places(axes, xy):
                found.append({**words, "name": name, "at": at})
    return found


def lines(axes: Axes) -> list[tuple[str, list]]:
    """(name, [(x, y), ...]) of each line in the units of the data; reference lines and caps of error bars are none."""
    found = []
    for line in axes.lines:
        if line.get_transform() == axes.transData and line.get_marker() not in ("|", "_") and line.get_visible():
            found.append((name(line), list(zip(*line.get_data(orig=False), strict=True))))
    return found


def bars(axes: Axes) -> list[tuple[str, list]]:
    """(name, [(x, y) of its end]) of each bar."""
    found = []
    for group in axes.containers:
        for bar in group.patches if isinstance(group, BarContainer) else []:
            (x, y), (width, height) = bar.get_xy(), (bar.get_width(), bar.get_height())
            end = (x + width, y + height / 2) if group.orientation == "horizontal" else (x + width / 2, y + height)
            found.append((named(group.get_label(), bar.get_facecolor(), "solid"), [end]))
    return found


def name(line) -> str:
    """What a line of a figure is called when it is pointed at."""
    return named(str(line.get_label()), line.get_color(), line.get_linestyle())


def named(label: str, colour, dash: str) -> str:
    """A label that someone gave, else the optimizer that alone has this colour and a dash or none, else nothing."""
    from matplotlib.colors import to_hex

    if not re.fullmatch(r"_(child\d+|nolegend_|container\d+)?|", label):
        return label.removeprefix("_")
    known = [key for key in display.NAMES if to_hex(plots.look(key)["color"]) == to_hex(colour)]
    same = [key for key in known if (plots.look(key)["linestyle"] == "solid") == (dash in ("-", "solid"))]
    return display.name(same[0]) if len(same) == 1 else ""


def places(axes: Axes, xy: list) -> list[str]:
    """ "left top|x|y" of the finite points inside the panel, at most MOST, evenly chosen."""
    figure = axes.figure
    points, height = 72 / figure.dpi, figure.bbox.height
    kept = []
    for x, y in xy[:: math.ceil(len(xy) / MOST) or 1]:
        left, top = axes.transData.transform((x, y))
        inside = axes.bbox.x0 - 1 <= left <= axes.bbox.x1 + 1 and axes.bbox.y0 - 1 <= top <= axes.bbox.y1 + 1
        if math.isfinite(x) and math.isfinite(y) and inside:
            place = f"{left * points:.1f} {(height - top) * points:.1f}"
            kept.append(f"{place}|{value(axes.xaxis, x)}|{value(axes.yaxis, y)}")
    return kept


def value(axis, number: float) -> str:
    """A coordinate as text: the name of a category, else four digits."""
    formatter = axis.get_major_formatter()
    named = isinstance(axis.get_major_locator(), FixedLocator) and isinstance(formatter, FuncFormatter)
    return (named and formatter(number)) or (f"{number:.4g}" if abs(number) < 10_000 else f"{number:,.0f}")
