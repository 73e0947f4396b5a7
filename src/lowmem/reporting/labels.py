"""Names of lines and points, placed when the panels are where they stay: no name over another, over a tick or far away."""

import math
from itertools import pairwise, product

import numpy as np
from matplotlib.axes import Axes

GAP = 11.0  # points from one line of text to the next
FAR = 5.0  # points: a name moved further from its line's end than this is joined to it by a thin line
DISTANCES = (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 62.0, 80.0)  # points from a point to the edge of its name
# Degrees; the first are preferred.
ANGLES = (0, 90, -90, 22, -22, 45, -45, 67, -67, 180, 135, -135, 112, -112, 157, -157)
# Pixels of a mark of one point, and a little around.
EDGES = np.array([[0, 0], [0.7, 0], [-0.7, 0], [0, 0.7], [0, -0.7]])
LEADER = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 2}


# -- at the ends of lines --------------------------------------------------------------------------------------------


def at_ends(axes: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) beside the end of each line; spread() moves them apart when places are final."""
    place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    axes.end_labels = [
        axes.annotate(text, (x, y), color=colour, fontsize=8, **place)
        for x, y, text, colour in sorted(labels, key=lambda label: label[1])
    ]


def nearest_apart(heights: list[float], gap: float) -> list[float]:
    """Rising heights at least `gap` apart whose summed squares of distance from the given rising ones are least."""
    groups: list[list[float]] = []  # each a stack of touching names: wanted heights of its bottom
    for k, height in enumerate(heights):
        groups.append([height - k * gap])
        while len(groups) > 1 and sum(groups[-2]) / len(groups[-2]) > sum(groups[-1]) / len(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    feet = [sum(group) / len(group) for group in groups for _ in group]
    return [foot + k * gap for k, foot in enumerate(feet)]


def shifts(axes: Axes) -> list[float]:
    """How many points each end label has to rise so that they stand apart and beside their panel."""
    points = 72 / axes.figure.dpi
    heights = [axes.transData.transform(label.xy)[1] * points for label in axes.end_labels]
    placed = nearest_apart(heights, GAP)
    floor, ceiling = min([axes.bbox.y0 * points, *heights]), max([axes.bbox.y1 * points, *heights])
    for k in range(len(placed)):  # a stack that leaves the panel is pushed back into it
        placed[k] = max(placed[k], floor + k * GAP)
    for k in range(1, len(placed) + 1):
        placed[-k] = min(placed[-k], ceiling - (k - 1) * GAP)
    return [round(wanted - height, 1) for wanted, height in zip(placed, heights, strict=True)]


def step_aside(axes: Axes) -> bool:
    """Make room for lines from the ends to their names where names have to move far; whether that was needed."""
    axes.label_indent = 18 if any(abs(shift) > FAR for shift in shifts(axes)) else 6
    for label in axes.end_labels:
        label.set_position((axes.label_indent, 0))
    return axes.label_indent > 6


def spread(axes: Axes) -> None:
    """Move the end labels of a panel apart, each as little as possible."""
    for label, shift in zip(axes.end_labels, shifts(axes), strict=True):
        label.set_position((axes.label_indent, shift))
        if axes.label_indent > 6:
            place = {"xytext": (axes.label_indent - 1, shift), "textcoords": "offset points", "annotation_clip": False}
            axes.annotate("", label.xy, arrowprops={**LEADER, "color": label.get_color()}, **place)


# -- beside points ---------------------------------------------------------------------------------------------------


def at_points(axes: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) near each point; place() finds where, inside the panel, when places are final."""
    place = {"xytext": (7, 0), "textcoords": "offset points", "ha": "center", "va": "center"}
    axes.point_labels = [
        axes.annotate(text, (x, y), color=colour, fontsize=8, **place) for x, y, text, colour in labels
    ]
    for label in axes.point_labels:
        label.set_in_layout(False)  # it is inside its panel


def place(axes: Axes) -> None:
    """Put each name where it covers least: no other name, few lines and marks, near its point; three times in turn."""
    sizes = [label.get_window_extent() for label in axes.point_labels]
    halves = [(box.width / 2 + 1, box.height / 2 + 0.5) for box in sizes]
    points = [axes.transData.transform(label.xy) for label in axes.point_labels]
    drawn, unit = covered(axes), axes.figure.dpi / 72
    chosen: list = [None] * len(points)
    for _, k in product(range(3), range(len(points))):
        others = [(*chosen[j], *halves[j]) for j in range(len(points)) if j != k and chosen[j] is not None]
        spots = candidates(points[k], halves[k], unit)
        chosen[k] = min(spots, key=lambda spot: cost(spot, k, points, halves[k], others, drawn, axes.bbox))
    for label, point, centre, half in zip(axes.point_labels, points, chosen, halves, strict=True):
        offset = [round(float(one), 1) for one in (centre - point) / unit]
        label.set_position(offset)
        if off(centre, point, half) > 12 * unit:
            near = [round(float(one), 1) for one in (nearest(centre, point, half) - point) / unit]
            arrow = {**LEADER, "color": label.get_color()}
            axes.annotate("", label.xy, xytext=near, textcoords="offset points", arrowprops=arrow)


def candidates(point: np.ndarray, half: tuple[float, float], unit: float) -> list[np.ndarray]:
    """Centres of a box whose edge is at one of the distances from the point, right of it first."""
    ways = [np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))]) for angle in ANGLES]
    return [point + way * (d * unit + reach(way, half)) for d in DISTANCES for way in ways]


def reach(way: np.ndarray, half: tuple[float, float]) -> float:
    """From the centre of a box to its edge in one direction."""
    return min(size / abs(part) for size, part in zip(half, way, strict=True) if abs(part) > 1e-9)


def cost(spot, k: int, points: list, half, others: list[tuple], drawn: np.ndarray, panel) -> float:
    """How bad a place for the name of point k is; rounded, so that ties are resolved alike on every machine.

    Worst: on another name; then outside the panel, on marks and lines, nearer to another point, far from its own.
    """
    (x, y), (wide, high) = spot, half
    outside = max(panel.x0 + 2 - x + wide, x + wide - panel.x1, panel.y0 + 2 - y + high, y + high - panel.y1, 0.0)
    hit = sum(abs(x - a) < wide + w and abs(y - b) < high + h for a, b, w, h in others)
    inside = (abs(drawn[:, 0] - x) < wide) & (abs(drawn[:, 1] - y) < high)
    far = off(spot, points[k], half)
    astray = sum(off(spot, point, half) < far - 1 for point in points)
    lines = float(drawn[inside, 2].sum())
    return round(20 * outside + 4000 * hit + 6 * lines + 15 * astray + max(far, 10.0), 1)


def nearest(centre: np.ndarray, point: np.ndarray, half: tuple[float, float]) -> np.ndarray:
    """The place of a box that is nearest to a point."""
    return np.clip(point, centre - half, centre + np.array(half))


def off(centre: np.ndarray, point: np.ndarray, half: tuple[float, float]) -> float:
    """How far a point is from the edge of a box, pixels; 0 inside."""
    return float(np.hypot(*(nearest(centre, point, half) - point)))


def covered(axes: Axes) -> np.ndarray:
    """(n, 3): places along the lines of a panel, a few pixels apart, and how much each matters; marks matter most."""
    found = [np.empty((0, 3))]
    for line in axes.lines:
        if line.get_transform() != axes.transData:
            continue
        at = axes.transData.transform(np.column_stack(line.get_data(orig=False)).astype(float))
        weight = line.get_alpha() or 1.0
        if line.get_marker() not in ("None", "none", "", None):
            found += [
                np.column_stack([at + edge, np.full(len(at), 2 * weight)]) for edge in EDGES * line.get_markersize()
            ]
        if line.get_linestyle() not in ("None", "none", ""):
            found += [along(a, b, weight) for a, b in pairwise(at)]
    return np.concatenate(found)


def along(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """Places from a to b, four pixels apart, with their weight."""
    share = np.linspace(0, 1, max(2, int(np.hypot(*(b - a)) / 4)))[:, None]
    return np.column_stack([a + share * (b - a), np.full(len(share), weight)])
