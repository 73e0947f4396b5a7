"""Figure 1 of LOMO: when each gradient lives and each parameter changes in one training step, from logged hook events.

A chain of equal linear layers, SGD against LOMO. Left: three layers, as drawn in the paper. Right: the most gradient
bytes alive at once as the chain grows, which the paper states as O(n) against O(1).
"""

import re

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, by_axis, unfinished
from lowmem.reporting.values import exact, missing

EXHIBIT = {
    "id": "lomo_fig1",
    "paper": "lomo",
    "label": "Figure 1",
    "order": 10,
    "kind": "figure",
    "topic": "cost",
    "title": "Order of backward and update, and live gradients",
    "experiments": ["lomo_event_order"],
    "published": "lomo.fig1",
}

OPTIMIZERS = ("sgd", "lomo")
COLUMNS = ["layers", "optimizer", "most live gradients", "most live bytes", "all gradients (bytes)", "share alive"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Rows: peaks by depth and optimizer. Values: LOMO's peak in largest gradients, growth of both with depth."""
    shown = ExhibitResult(
        caption="One training step on a chain of equal linear layers, logged by hooks. A bar lasts while a gradient "
        "is alive; a dot is the update of its parameter. LOMO keeps the same few gradients at any depth.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "The paper draws a sketch of three parameters; here the events are logged from a real backward pass."
        ],
    )
    for optimizer in OPTIMIZERS:
        value = printed(published, "gradient_memory", optimizer=display.name(optimizer))
        shown.published += published_entry(f"{display.name(optimizer)}, gradient memory", value)
    depths = sorted(by_axis(runs, "depth"))
    found = {(d, name): runs.one(depth=d, optimizer=name) for d in depths for name in OPTIMIZERS}
    for (d, optimizer), run in found.items():
        add_row(shown, d, optimizer, run)
    growth(shown, found, depths, unfinished(runs))
    shown.figure = draw(found, depths)
    columns = ["layers", "optimizer", "index", "event", "parameter", "live_gradients", "live_gradient_bytes"]
    points = [[d, name, *(e[c] for c in columns[2:])] for (d, name), run in found.items() for e in events(run)]
    shown.points = {"columns": columns, "rows": points}
    return shown


def events(run: Run) -> list[dict]:
    """Events of one step in order, each a gradient that appears or an update."""
    return run.curve() if run.status == "done" else []


def add_row(shown: ExhibitResult, depth: int, optimizer: str, run: Run) -> None:
    name = display.name(optimizer)
    if run.status != "done":
        shown.rows.append([depth, name, run.reason, "", "", ""])
        return
    peak, total = run.final("live_peak_bytes"), run.final("total_gradient_bytes")
    shown.rows.append([depth, name, run.final("live_peak"), f"{peak:,}", f"{total:,}", f"{peak / total:.1%}"])


def growth(shown: ExhibitResult, found: dict, depths: list[int], reason: str | None) -> None:
    """Values for the claims, or why there are none."""
    names = ("lomo.peak_in_largest_gradients", "lomo.growth", "sgd.growth")
    if reason:
        shown.values = {name: missing(reason) for name in names}
        return
    peaks = {key: run.final("live_peak_bytes") for key, run in found.items()}
    first, last = depths[0], depths[-1]
    sizes = [found[d, "lomo"].final("largest_gradient_bytes") for d in depths]
    shown.values = {
        names[0]: exact(max(peaks[d, "lomo"] / size for d, size in zip(depths, sizes)), "× the largest gradient"),
        names[1]: exact(peaks[last, "lomo"] / peaks[first, "lomo"], f"× from {first} to {last} layers"),
        # relative to the depth: 1 means exactly proportional
        names[2]: exact(peaks[last, "sgd"] / peaks[first, "sgd"] / (last / first), "× the growth in depth"),
    }


def draw(found: dict, depths: list[int]):
    """Timelines above live bytes for the shallowest chain, peaks by depth on the right."""
    layout = [["sgd", "lomo", "depth"], ["sgd bytes", "lomo bytes", "depth"]]
    drawn, panels = plots.figure(layout, height=4.0, height_ratios=[1.7, 1], width_ratios=[1, 1, 0.95])
    shallow = depths[0]
    unit = 1024
    top = max((e["live_gradient_bytes"] for o in OPTIMIZERS for e in events(found[shallow, o])), default=1) / unit
    for optimizer in OPTIMIZERS:
        run = found[shallow, optimizer]
        axes, below = panels[optimizer], panels[f"{optimizer} bytes"]
        if run.status != "done":
            plots.empty(axes, run.reason)
            plots.empty(below, "")
            continue
        timeline(axes, events(run), optimizer)
        axes.set_title(f"{display.name(optimizer)}, {shallow} layers")
        heights = [e["live_gradient_bytes"] / unit for e in events(run)]
        colour = plots.look(optimizer)["color"]
        below.stairs(heights, color=colour, linewidth=1.8)
        below.stairs(heights, color=colour, alpha=0.18, fill=True)
        below.set(xlabel="events in order", ylabel="live gradients (KiB)", ylim=(0, top * 1.12), xlim=axes.get_xlim())
        axes.tick_params(labelbottom=False)
        for panel in (axes, below):
            panel.set_xticks(range(0, len(heights) + 1, max(1, len(heights) // 6)))
    peaks(panels["depth"], found, depths, unit)
    return drawn


def timeline(axes, logged: list[dict], optimizer: str) -> None:
    """One row for each parameter, the first layer on top; a bar while its gradient is alive, a dot at its update."""
    names = sorted({e["parameter"] for e in logged}, key=lambda name: int(re.sub(r"\D", "", name) or 0))
    row = {name: len(names) - 1 - k for k, name in enumerate(names)}
    colour = plots.look(optimizer)["color"]
    for parameter, (start, end) in lifetimes(logged).items():
        axes.barh(row[parameter], end - start, left=start, height=0.5, color=colour, alpha=0.35)
    for k, event in enumerate(logged):
        if event["event"] == "update":
            axes.plot(k + 0.5, row[event["parameter"]], "o", color=colour, markersize=6, zorder=3)
    axes.set_yticks(list(row.values()), list(row))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(-0.2, len(logged) + 0.2)
    axes.grid(axis="y", visible=False)


def lifetimes(logged: list[dict]) -> dict[str, tuple[int, int]]:
    """{parameter: (event at which its gradient appears, event before which it is freed)}.

    The log holds how many gradients are alive at each event; when fewer are than have appeared, those updated first
    have been freed. What is alive at the last event lasts until the end of the step.
    """
    born, gone, updated = {}, {}, []
    for k, event in enumerate(logged):
        if event["event"] == "gradient":
            born[event["parameter"]] = k
        while len(born) - len(gone) > event["live_gradients"] and len(gone) < len(updated):
            gone[updated[len(gone)]] = k
        if event["event"] == "update":
            updated.append(event["parameter"])
    return {parameter: (start, gone.get(parameter, len(logged))) for parameter, start in born.items()}


def peaks(axes, found: dict, depths: list[int], unit: int) -> None:
    """Most live gradient bytes against the number of layers, both axes logarithmic to base 2."""
    labels = []
    for optimizer in OPTIMIZERS:
        done = [
            (d, found[d, optimizer].final("live_peak_bytes") / unit)
            for d in depths
            if found[d, optimizer].status == "done"
        ]
        if done:
            x, y = zip(*done, strict=True)
            plots.line(axes, x, y, optimizer, marker=plots.MARKERS[optimizer])
            labels.append((x[-1], y[-1], display.name(optimizer), plots.look(optimizer)["color"]))
    if not labels:
        plots.empty(axes, "not run: no record")
        return
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(depths, [str(d) for d in depths])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set(xlabel="layers", ylabel="most live gradients (KiB)")
    axes.set_title("Peak by depth")
    axes.set_xlim(depths[0] * 0.85, depths[-1] * 2.1)
    plots.end_labels(axes, labels)
