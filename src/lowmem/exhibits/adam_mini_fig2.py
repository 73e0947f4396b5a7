"""Figure 2 of Adam-mini: which parameters share a rate under SGD, Adam-mini and Adam, over a Hessian that was computed.

The matrix is the query's of Figure 7. Bright: pairs of parameters with one rate in common; dimmed: the others.
"""

import numpy as np
from matplotlib.patches import Rectangle

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import hessian as hn
from lowmem.reporting.numbers import scale
from lowmem.reporting.panels import matrices
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs, unfinished
from lowmem.reporting.values import exact, missing

EXHIBIT = {
    "id": "adam_mini_fig2",
    "paper": "adam_mini",
    "label": "Figure 2",
    "order": 20,
    "kind": "figure",
    "topic": "theory",
    "title": "Which parameters share a learning rate",
    "experiments": ["hessian_transformer"],
    "published": "adam_mini.figure2",
}

MODULE = "query"
COLUMNS = ["optimizer", "rates", "parameters per rate", "|H| between parameters that share a rate"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: rates of each optimizer."""
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "|H| of the query weights of a one-layer Transformer, three times. Bright: pairs of parameters that "
        f"share one rate; dimmed: pairs that do not. {matrices.SCALE[0].upper()}{matrices.SCALE[1:]}.",
        columns=COLUMNS,
        rows=[],
        published=published_entry("left panel", printed(published, "left_panel")),
        deviations=["The paper's matrix has about 1024 rows and 4 blocks of 256; ours has 256 rows and 4 of 64."],
    )
    first = next((run for run in runs if run.status == "done"), None)
    stage = hn.stages(list(runs))[0]
    found = hn.numbers([first] if first else [], stage, MODULE, "size", "blocks", "share", "diagonal")
    picture = first.arrays().get(f"{MODULE}@{stage}") if first else None
    lost = not found or picture is None
    reason = unfinished(runs) or "not run: its arrays are lost" if lost else None
    size, blocks, share, diagonal = found[0] if found else (0, 0, 0, 0)
    rates = {"sgd": (1, 1.0), "adam_mini": (blocks, share), "adamw": (size, diagonal)}
    for name, (count, inside) in rates.items():
        label = {"adamw": "Adam"}.get(name, display.name(name))
        if reason:
            shown.rows.append([label, reason, "", ""])
            shown.values[f"rates.{name}"] = missing(reason)
        else:
            shown.rows.append([label, count, size // count, f"{100 * inside:.1f} %"])
            shown.values[f"rates.{name}"] = exact(count, "rates")
    shown.figure = draw(picture, rates, reason)
    return shown


def draw(picture, rates: dict, reason: str | None):
    """The matrix once for each optimizer, with the number of rates it has."""
    drawn, panels = plots.figure([list(rates)], width=9.6, height=3.2)
    for name, (count, _) in rates.items():
        axes = panels[name]
        if reason:
            plots.empty(axes, reason)
            continue
        label = {"adamw": "Adam"}.get(name, display.name(name))
        matrices.show(axes, picture, title=f"{label}: {count} rate{'s' if count > 1 else ''}")
        outline(axes, len(picture), min(count, len(picture)), plots.COLOURS[name])
    if not reason:
        matrices.colour_bar(drawn, list(panels.values()))
    return drawn


def outline(axes, pixels: int, groups: int, colour: str) -> None:
    """Dim what shares no rate; outline the groups where they are large enough to see."""
    place = np.arange(pixels) * groups // pixels
    veil = np.zeros((pixels, pixels, 4))
    veil[..., 3] = np.where(place[:, None] == place, 0, 0.72)
    matrices.name_apart(axes.imshow(veil, interpolation="none", extent=(0, pixels, pixels, 0)))
    side = pixels / groups
    for k in range(groups if groups <= 16 else 0):
        axes.add_patch(Rectangle((k * side, k * side), side, side, fill=False, edgecolor=colour, linewidth=2))
