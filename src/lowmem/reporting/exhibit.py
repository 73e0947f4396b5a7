"""One table or figure: load the records it needs, let its file render them, write picture, numbers and caption.

`lowmem exhibit ID` works from whatever records exist. A run without a record, with a record of another configuration,
or one that ended early is shown as such; nothing is filled in.
"""

import contextlib
import csv
import fnmatch
import importlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lowmem import kept_files, progress
from lowmem.errors import Failed, Misuse, nearest
from lowmem.files import read_yaml, write_json, write_text
from lowmem.pipeline import archive, experiments, planning, record
from lowmem.reporting.values import Value, check


@dataclass(frozen=True)
class Run:
    """One planned run and what became of it.

    status: done, diverged, oom, failed, or missing (no record, or one of another configuration).
    reason: None when done, else a short text that a table cell can show. own_rate: its rate was chosen by a tuning experiment.
    """

    id: str
    experiment: str
    variant: str
    seed: int
    config: dict
    status: str
    reason: str | None = None
    record: dict | None = None
    folder: Path | None = None
    own_rate: bool = False

    def final(self, key: str):
        """A number of metrics.final of a finished run, else None."""
        return self.record["metrics"]["final"].get(key) if self.status == "done" else None

    def arrays(self) -> dict:
        """{name: numpy array} that the run wrote beside its record; empty where there are none."""
        return record.read_arrays(self.folder, self.record) if self.status == "done" else {}

    def curve(self) -> list[dict]:
        """The lines of curve.jsonl; empty without a record."""
        return record.curve(self.folder, self.record) if self.folder and self.record else []


@dataclass(frozen=True)
class Runs:
    """The runs of an exhibit, in the order of the experiment files. archived: kept records that its header names."""

    all: list[Run]
    archived: list[Run] = field(default_factory=list)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.all)

    def variants(self) -> dict[str, list[Run]]:
        """{variant: its runs by seed}, in order."""
        found: dict[str, list[Run]] = {}
        for run in self.all:
            found.setdefault(run.variant, []).append(run)
        return found

    def one(self, variant: str, seed: int | None = None) -> Run:
        """The run of a variant (its first seed unless one is named); a missing one is a Run that says so."""
        for run in self.all:
            if run.variant == variant and seed in (None, run.seed):
                return run
        return Run(variant, "", variant, 0, {}, "missing", "not run: not planned in this tier")


@dataclass
class Shown:
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
    runs_used: list[str] = field(default_factory=list)
    points: dict | None = None
    filters: list[str] = field(default_factory=list)
    bars: list[str] = field(default_factory=list)


def make(
    root: Path, id: str, tier: str, options: dict | None = None, out: Path | None = None, archived: bool = False
) -> Shown:
    """Render one exhibit and write its files below `out` (default reports/<tier>). Returns what is shown.

    archived: from the records kept in data/records alone, not from results/.
    """
    header, shown, runs = render(root, id, tier, options, archived)
    write(out or root / "reports" / tier, header, shown, runs, tier)
    return shown


def render(
    root: Path, id: str, tier: str, options: dict | None = None, archived: bool = False
) -> tuple[dict, Shown, Runs]:
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
        shown = module.render(runs, published(root, header), tier)
    if "times" in header and (competing := disturbed(runs)):
        shown.caption += f" {competing}, so times are too long and their ratios uncertain."
        for name, value in shown.values.items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in header["times"]):
                value["busy"] = competing
    return header, shown, runs


def disturbed(runs: Runs) -> str:
    """On the runs whose times were taken while other programs competed for the cores, in words; empty without such."""
    known = [run.record for run in runs if (run.record or {}).get("load")]
    busy = [one for one in known if progress.company(one)]
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


def load(root: Path, names: list[str], tier: str, options: dict) -> Runs:
    """All runs of the experiments with their records, if these exist and belong to the present configuration."""
    return Runs([look_up(root, run) for name in names for run in experiments.runs(root, name, tier, options)])


def archived_runs(root: Path, name: str) -> list[Run]:
    """Records of an experiment kept in data/records. name: tier/experiment, e.g. "workstation/char_shakespeare".

    They belong to the present settings but for where the data came from: the same file may come from a folder or https.
    What a tier runs as another does, without an archive of its own, comes from that one's.
    """
    tier, experiment = name.split("/")
    if not archive.archive(root, name).is_file():
        name = f"{experiments.set_by(root, experiment, tier)}/{experiment}"
    found, place = [], archive.folder(root, name)
    for run in experiments.runs(root, experiment, tier):
        folder = place.parent / run["id"]
        with contextlib.suppress(Failed):
            made = record.load(folder)
            if without_source(made["config"]) == without_source(run["config"]):
                run = {**run, "config": made["config"], "config_hash": made["config_hash"]}
        found.append(look_up(root, run, folder))
    return found


def without_source(config: dict) -> dict:
    """A configuration that does not say where its data came from."""
    return {**config, "data": {key: value for key, value in config.get("data", {}).items() if key != "source"}}


def look_up(root: Path, run: dict, folder: Path | None = None) -> Run:
    """One planned run with its record (default: in results/), or with the reason why there is none."""
    known = {key: run[key] for key in ("id", "experiment", "variant", "seed", "config")}
    known["own_rate"] = run.get("own_rate", False)
    folder = folder or root / "results" / run["tier"] / run["id"]
    path = folder / "record.json"
    if not path.is_file():
        return Run(**known, status="missing", reason="not run: no record")
    try:
        made = record.load(folder)
        experiments.check(root, made, "record", Path("record.json"))
    except (Failed, Misuse) as error:
        message = getattr(error, "short", error)
        return Run(**known, status="missing", reason=f"not run: the record is damaged ({message})")
    if made["config_hash"] != run["config_hash"]:
        return Run(**known, status="missing", reason="not run: the record belongs to another configuration")
    if problem := record.integrity_problem(
        folder, made, {"curve": record.CURVE}
    ):  # lost arrays cost a picture, see Run.arrays
        return Run(**known, status="missing", reason=f"not run: the record is damaged ({problem})")
    return Run(**known, status=made["status"], reason=why(made), record=made, folder=folder)


def why(record: dict) -> str | None:
    """Short text on a run that did not finish: diverged and out of memory are results and name their step."""
    status, reason = record["status"], record.get("reason")
    if status == "done":
        return None
    if status not in ("diverged", "oom"):
        return f"not run: failed ({reason or 'no reason recorded'})"
    step = ((record.get("metrics") or {}).get("final") or {}).get("step")
    place = reason or (None if step is None else f"at step {step}")
    return {"diverged": "diverged", "oom": "out of memory"}[status] + (f" ({place})" if place else "")


def unfinished(runs: Iterable[Run]) -> str | None:
    """Why some of these runs are not done, equal reasons counted together; None when all are done.

    Reasons that differ in numbers alone are one, with the range of each: (at step 85 to 232).
    """
    runs = list(runs)
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.status != "done":
            found.setdefault(re.sub(r"\d+", "#", run.reason), []).append(run)
    texts = []
    for same in found.values():
        name = f"{same[0].variant}/seed{same[0].seed}"
        others = f" and {len(same) - 1} more of {len(runs)} runs" if len(same) > 1 else ""
        texts.append(f"{ranges([run.reason for run in same])}: {name}{others}")
    return "; ".join(texts) or None


def ranges(reasons: list[str]) -> str:
    """One sentence for reasons that differ in whole numbers alone: each number, or the smallest to the largest."""
    numbers = iter(zip(*(map(int, re.findall(r"\d+", reason)) for reason in reasons), strict=True))

    def between(_) -> str:
        found = next(numbers)
        return f"{min(found)}" if min(found) == max(found) else f"{min(found)} to {max(found)}"

    return re.sub(r"\d+", between, reasons[0])


def published(root: Path, header: dict) -> dict:
    """The published item that a header names, e.g. "adam_mini.table1", or a whole file ("independent"); else empty."""
    files = planning.published_files(header)
    if not files:
        return {}
    path, name = root / files[0], header["published"]
    loaded = read_yaml(path)
    if "." not in name:
        return loaded
    items = loaded["items"]
    if name not in items:
        raise Misuse(f"{path}: no item {name!r}{nearest(name, items)}")
    return items[name]


def printed(published: dict, what: str, **at) -> dict | None:
    """The published value of a quantity at a row: {value, unit, source, confidence, ...}; None where unknown."""
    for value in published.get("values", []):
        if value["what"] == what and value.get("at", {}) == at:
            return value
    return None


def mark(label: str, value: dict | None) -> list[dict]:
    """A published value as an entry of Shown.published; an empty list where it is unknown."""
    if value is None:
        return []
    entry = {"label": label, "value": value["value"], "unit": value.get("unit")}
    return [{**entry, "source": value["source"], "confidence": value["confidence"]}]


def write(out: Path, header: dict, shown: Shown, runs: Runs, tier: str) -> None:
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
    used = {run.id: run for run in runs}
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
            "runs_used": shown.runs_used,
            "runs": [provenance(used[id]) for id in used],
        },
    )
    kept_files.seal_together(folder / header["id"], written)


def provenance(run: Run) -> dict:
    """What the report lists about a run: outcome, code, machine, packages."""
    record = run.record or {}
    code = record.get("code") or {}
    return {
        "id": run.id,
        "status": run.status,
        "reason": run.reason,
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


def cell(value) -> str:
    """A table cell as text; exhibits format their numbers themselves, so that csv, markdown and page agree."""
    return "" if value is None else str(value)


def as_csv(columns: list[str], rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    return buffer.getvalue()


def markdown(caption: str, columns: list[str], rows: list[list[str]]) -> str:
    """A caption and a pipe table; bars and line ends inside cells are escaped."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"

    return "\n".join([caption, "", line(columns), line(["---"] * len(columns)), *map(line, rows)]) + "\n"
