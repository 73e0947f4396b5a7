"""House style of all figures: one colour, dash and marker per optimizer, labels at the lines, units on the axes.

Pictures are svg with text as text, a transparent ground and an ink that reads on white and on dark; nothing in them
depends on the time or the machine, so that equal records give equal bytes.
"""

import io
import re
import textwrap
import zlib

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowmem.reporting import display, labels

INK = "#6a737d"  # contrast 4.8 on white, 4.0 on #0d1117; the report replaces it by the page's own text colour
GRID = "#8b949e"

# Colour-blind safe in their order of use (after Okabe and Ito), each with contrast 3 or more on white and on #0d1117.
COLOURS = {
    "adamw": "#2b7bba",
    "adam_mini": "#d55e00",
    "lomo": "#0a9a72",
    "sgd": "#8a6fb3",
    "adalomo": "#c05c94",
    "adafactor": "#a6761d",
    "came": "#3d8fa8",
    "sm3": "#7d8b1f",
    "lion": "#b5505a",
    "lamb": "#6f7bd0",
}
COLOURS |= {"adafactor_zhai": COLOURS["adafactor"], "adafactor_flags": COLOURS["adafactor"]}  # versions of one: dashes
COLOURS |= {"zhai_flags": COLOURS["adafactor"], "adam_mini_backward": COLOURS["lomo"]}
COLOURS |= {"default_partition": "#7d8b1f", "value_whole": "#8a6fb3", "embedding_whole": "#7d8b1f"}  # of Adam-mini
COLOURS |= {"embedding_adam": "#3d8fa8", "max": "#8a6fb3", "min": "#7d8b1f", "l1": "#c05c94", "l2": "#3d8fa8"}
COLOURS |= {"adam_mini_neuron": COLOURS["lomo"]}
COLOURS |= {"momentum": "#c05c94", "variance": "#0a9a72", "adam": "#2b7bba"}  # SGD's and Adam's moments one by one
SERIES = ["#6f7bd0", "#7d8b1f", "#c05c94", "#3d8fa8", "#a6761d"]  # for what is not an optimizer, e.g. model sizes
SPARE = ["#a8673f", "#4f8f4f", "#9b59b6", "#c2577a", "#5a8a9c"]  # for optimizers that have no colour above
DASHES = {"adam_mini": (0, (5, 1.5)), "lomo": (0, (5, 1.5)), "adalomo": (0, (2, 1.2)), "adafactor_zhai": (0, (3, 1.2))}
DASHES |= {"adam_mini_neuron": (0, (2, 1.2)), "default_partition": (0, (1, 1))}
DASHES |= {"adafactor_flags": (0, (1, 1)), "zhai_flags": (0, (3, 1, 1, 1)), "adam_mini_backward": (0, (2, 1.2))}
MARKERS = {"adamw": "o", "adam_mini": "s", "lomo": "s", "sgd": "o", "adalomo": "^", "adafactor": "D"}
NARROW = (2.4, 0.7)  # inches: most width and height of panels without data, where others have some or not
STYLE = {
    "svg.hashsalt": "lowmem",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": GRID,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "axes.formatter.use_mathtext": False,
}


def style():
    """Context in which colours, sizes and title places are the house's; exhibit.make renders inside it."""
    return matplotlib.rc_context(STYLE)


def figure(mosaic: list[list[str]], width: float = 9.6, height: float = 3.6, **options) -> tuple[Figure, dict]:
    """(Figure, {panel: Axes}) in house style, inches. options go to Figure.subplot_mosaic, e.g. width_ratios."""
    with style():
        drawn = Figure(figsize=(width, height), layout="constrained")
        panels = drawn.subplot_mosaic(mosaic, **options)
    drawn.get_layout_engine().set(w_pad=0.08, wspace=0.05, h_pad=0.06)
    return drawn, panels


def look(optimizer: str) -> dict:
    """Line keywords of an optimizer: fixed colour and dash; one without a colour of its own gets a spare one by its name."""
    spare = SPARE[zlib.crc32(optimizer.encode()) % len(SPARE)] if display.is_optimizer(optimizer) else INK
    return {"color": COLOURS.get(optimizer, spare), "linestyle": DASHES.get(optimizer, "solid")}


def line(axes: Axes, x, y, optimizer: str, low=None, high=None, **options) -> None:
    """A curve with its interval as a band of the same colour. x, y, low, high: (points,)."""
    axes.plot(x, y, **{**look(optimizer), **options})
    if low is not None:
        axes.fill_between(x, low, high, color=look(optimizer)["color"], alpha=0.18, linewidth=0)


end_labels, point_labels = labels.at_ends, labels.at_points


def published_mark(axes: Axes, x, y, **options) -> None:
    """Published values are open diamonds in ink, never joined by a line."""
    shape = {"marker": "D", "linestyle": "none", "markerfacecolor": "none", "markeredgecolor": INK, "markersize": 6}
    shape["label"] = "_published"
    axes.plot(x, y, **{**shape, **options})


def empty(axes: Axes, reason: str) -> None:
    """A panel without data says why, and takes little room (see fold)."""
    axes.set_axis_off()
    # matplotlib would wrap at the edge of the figure, not of the panel
    words = textwrap.fill(reason, 30, break_on_hyphens=False)
    axes.without_data = axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes)
    axes.without_data.set_in_layout(False)  # a long reason must not squeeze the panels


def fold(drawn: Figure) -> None:
    """Rows and columns whose panels all lack data get no more room than their words need."""
    grids = {axes.get_subplotspec().get_gridspec() for axes in drawn.axes if axes.get_subplotspec()}
    panels = [axes for axes in drawn.axes if axes.get_subplotspec()]
    blank = [axes for axes in panels if hasattr(axes, "without_data")]
    if not blank or len(grids) != 1:
        return
    grid, (width, height) = grids.pop(), drawn.get_size_inches()
    rows = sizes(grid.get_height_ratios(), height, idle(panels, "rowspan"), NARROW[1])
    if len(blank) == len(panels):  # one line of words under each title
        for axes in blank:
            axes.without_data.set(text=" ".join(axes.without_data.get_text().split()), ha="left", position=(0.0, 0.5))
    else:
        grid.set_width_ratios(sizes(grid.get_width_ratios(), width, idle(panels, "colspan"), NARROW[0]))
    grid.set_height_ratios(rows)
    drawn.set_size_inches(width, sum(rows))


def idle(panels: list[Axes], span: str) -> set[int]:
    """Rows ("rowspan") or columns ("colspan") of the grid that hold panels, all of them without data."""
    used: dict[int, list[bool]] = {}
    for axes in panels:
        for k in getattr(axes.get_subplotspec(), span):
            used.setdefault(k, []).append(hasattr(axes, "without_data"))
    return {k for k, blank in used.items() if all(blank)}


def sizes(ratios: list[float], whole: float, folded: set[int], most: float) -> list[float]:
    """Inches of each row or column; folded ones have at most `most`."""
    inches = [whole * ratio / sum(ratios) for ratio in ratios]
    return [min(size, most) if k in folded else size for k, size in enumerate(inches)]


def settle(drawn: Figure) -> None:
    """Fix panels where the layout puts them, rounded: its solver's last digits differ from process to process."""
    fold(drawn)
    layout = drawn.get_layout_engine()
    layout.execute(drawn)
    if any([labels.step_aside(axes) for axes in drawn.axes if hasattr(axes, "end_labels")]):
        layout.execute(drawn)
    places = {axes: axes.get_position().bounds for axes in drawn.axes}
    drawn.set_layout_engine("none")
    for axes, bounds in places.items():
        axes.set_position([round(number, 3) for number in bounds])
        if hasattr(axes, "end_labels"):
            labels.spread(axes)
        if hasattr(axes, "point_labels"):
            labels.place(axes)


def svg(drawn: Figure) -> str:
    """The figure as svg text: no date, no creator, ids from a fixed salt; equal figures give equal bytes."""
    buffer = io.StringIO()
    with style():
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        settle(drawn)
        drawn.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = re.sub(r"<!DOCTYPE[^>]*>\s*", "", text)  # it names a host that nothing needs
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    return "\n".join(row.rstrip() for row in text.splitlines()) + "\n"
