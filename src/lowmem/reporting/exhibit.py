"""One table or figure: load the records it needs, let its file render them, write picture, numbers and caption.

`lowmem exhibit ID` works from whatever records exist.
"""

import contextlib
import fnmatch
import importlib
from dataclasses import dataclass, field
from pathlib import Path

from lowmem import kept_files, progress
from lowmem.errors import Misuse, nearest
from lowmem.files import write_json, write_text
from lowmem.pipeline import planning
from lowmem.reporting import published
from lowmem.reporting.runs import Run, Runs, archived_runs, load
from lowmem.reporting.tables import as_csv, cell, markdown
from lowmem.reporting.values import Value, check


@dataclass
class ExhibitResult:
    """What an exhibit shows.

    rows: cells exactly as markdown and csv show them. values: for the claims (values.py). published: [{label, value, unit,
    source, confidence}]. points: plotted numbers, {columns, rows}, where the figure shows more than the rows do. filters:
    columns of a long table by which the page lets choose rows; the first value of each is shown first. bars: columns whose
    numbers the page draws as bars too.
    """

    caption: str
    columns: list[str]
    rows: list[list]
    values: dict[str, Value] = field(default_factory=dict)
    published: list[dict] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    figure: object | None = None
    points: dict | None = None
    filters: list[str] = field(default_factory=list)
    bars: list[str] = field(default_factory=list)


def make(
    root: Path, id: str, tier: str, options: dict | None = None, out: Path | None = None, archived: bool = False
) -> ExhibitResult:
    """Render one exhibit and write its files below `out` (default reports/<tier>). Returns what is shown.

    archived: from the records kept in data/records alone, not from results/.
    """
    header, shown, runs = render(root, id, tier, options, archived)
    write(out or root / "reports" / tier, header, shown, runs, tier)
    return shown


def render(
    root: Path, id: str, tier: str, options: dict | None = None, archived: bool = False
) -> tuple[dict, ExhibitResult, Runs]:
    """(header, what is shown, the runs it was given) of one exhibit; writes nothing."""
    headers = planning.exhibits(root)
    if id not in headers:
        raise Misuse(f"unknown exhibit {id!r}{nearest(id, headers)}")
    header = headers[id]
    beside = [run for name in header.get("archived", []) for run in archived_runs(root, name)]
    if archived:
        own = [run for name in planning.shown_by(header, tier) for run in archived_runs(root, f"{tier}/{name}")]
    else:
        own = load(root, planning.shown_by(header, tier), tier, options or {}).all
    runs = Runs(own, beside)
    module = importlib.import_module(f"lowmem.exhibits.{id}")
    with style() if header["kind"] == "figure" else contextlib.nullcontext():
        shown = module.render(runs, published.load(root, header), tier)
    if "times" in header and (competing := disturbed(runs)):
        shown.caption += f" {competing}, so times are too long and their ratios uncertain."
        for name, value in shown.values.items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in header["times"]):
                value["busy"] = competing
    return header, shown, runs


def disturbed(runs: Runs) -> str:
    """On the runs whose times were taken while other programs competed for the cores, as text; empty without such runs."""
    known = [run.outcome.record for run in runs if (run.outcome.record or {}).get("load")]
    busy = [one for one in known if progress.busy_cores(one)]
    if not busy:
        return ""
    most = max(one["load"]["others"] for one in busy)
    return (
        f"Other programs competed for the cores during {len(busy)} of {len(known)} runs (they used up to {most:.1f} of "
        f"{busy[0]['load']['cores']})"
    )


def style():
    """The house style of plots.py as a context; tables are made without importing matplotlib."""
    from lowmem.reporting import plots

    return plots.style()


def write(out: Path, header: dict, shown: ExhibitResult, runs: Runs, tier: str) -> None:
    """Write <id>.{md|svg}, <id>.csv and <id>.json into tables/ or figures/, each atomically."""
    folder = out / ("figures" if header["kind"] == "figure" else "tables")
    widths = {len(row) for row in shown.rows} - {len(shown.columns)}
    if widths:
        raise ValueError(f"{header['id']}: rows of {sorted(widths)} cells under {len(shown.columns)} columns")
    for name, found in shown.values.items():
        check(name, found)
    rows = [[cell(value) for value in row] for row in shown.rows]
    if header["kind"] == "figure":
        from lowmem.reporting import hover, plots

        write_text(folder / f"{header['id']}.svg", plots.svg(shown.figure))
        pointed = hover.series(shown.figure)
    else:
        pointed = []
        write_text(folder / f"{header['id']}.md", markdown(shown.caption, shown.columns, rows))
    written = [
        folder / f"{header['id']}.{end}" for end in ("svg" if header["kind"] == "figure" else "md", "csv", "json")
    ]
    write_text(written[1], as_csv(shown.columns, rows))
    planned = {run.id: run for run in runs}
    write_json(
        written[2],
        {
            "id": header["id"],
            "paper": header["paper"],
            "label": header["label"],
            "title": header["title"],
            "kind": header["kind"],
            "tier": tier,
            "caption": shown.caption,
            "columns": shown.columns,
            "rows": rows,
            "values": shown.values,
            "published": shown.published,
            "deviations": shown.deviations,
            "points": shown.points,
            "filters": shown.filters,
            "bars": shown.bars,
            "hover": pointed,
            "runs_used": runs.used(),
            "runs": [provenance(run) for run in planned.values()],
        },
    )
    kept_files.seal_together(folder / header["id"], written)


def provenance(run: Run) -> dict:
    """What the report lists about a run: outcome, code, machine, packages."""
    outcome, record = run.outcome, run.outcome.record or {}
    code = record.get("code") or {}
    return {
        "id": run.id,
        "status": outcome.status,
        "reason": outcome.reason,
        "config_hash": record.get("config_hash"),
        "commit": code.get("commit"),
        "dirty": code.get("dirty"),
        "device": record.get("device"),
        "packages": record.get("packages") or {},
        "started": record.get("started"),
        "load": record.get("load"),
        "ended": record.get("ended"),
        "run_s": (record.get("throughput") or {}).get("run_s"),
        "steps_s": (record.get("throughput") or {}).get("steps_s"),
    }
