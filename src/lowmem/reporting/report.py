"""The report: one self-contained page with the verdicts on top and every exhibit beside its published values.

Nothing on the page is fetched: pictures are inline svg, numbers are data links, and everything from records and
configuration is escaped by the template.
"""

import collections
import functools
import re
import sys
from pathlib import Path
from urllib.parse import quote

from lowmem import kept_files
from lowmem.errors import Failed, Misuse
from lowmem.files import read_json, read_yaml, write_text
from lowmem.pipeline import archive, experiments, planning
from lowmem.reporting import claims, exhibit, report_evidence, report_summary, ro_crate, tables
from lowmem.reporting.verdicts import WORDS, words

PAPERS = {
    "adam_mini": {
        "name": "Adam-mini",
        "arxiv": "2406.16793",
        "says": "Keep one second-moment number for each block of weights instead of one for each weight: half the optimizer "
        "memory of AdamW, and models as good.",
    },
    "lomo": {
        "name": "LOMO",
        "arxiv": "2306.09782",
        "says": "Use each gradient as soon as it exists and free it: fine-tune all weights with little more memory than "
        "running the model takes.",
    },
    "adalomo": {
        "name": "AdaLomo",
        "arxiv": "2310.10195",
        "says": "LOMO with a second moment of each row and column: closer to AdamW, for little memory.",
    },
    "extra": {"name": "Ours, in no paper", "arxiv": None, "says": "What we measured beside the papers."},
}
SHORTCUTS = {"extra_explorer": "Will it fit? Explorer", "extra_optimizers": "Optimizers side by side"}
WHEN = {
    "before": "before any run of a tier that decides",
    "after_trial": "after trial runs or runs of smaller tiers",
    "after_data": "with data of a tier that decides in sight",
}
SAFE = " !$*+,/:;=?@[]^_`{|}~"  # in a data link, where the rest is quoted
SIGNS = {"reproduced": "✓", "direction_only": "≈", "contradicted": "✗", "same_direction": "→", "opposite_here": "←"}
SIGNS |= {"simulated_fits": "∼", "simulated_differs": "≁", "inconclusive": "?", "not_testable": "∅", "not_run": "–"}


def make(root: Path, tier: str, options: dict | None = None, kind: str | None = None) -> Path:
    """Write index.html and return its path.

    Reads the exhibits' and claims' files of reports/<tier>. kind "so_far" first renders every exhibit and claim from
    whatever records exist into reports/<tier>/so_far, so that a half-finished pipeline can be looked at; "archived" does
    so from the records kept in data/records, into reports/<tier>/archived.
    """
    if kind == "archived" and not archive.names(root, tier):
        there = ", ".join(sorted({name.split("/")[0] for name in archive.names(root)})) or "none"
        raise Misuse(f"no records of tier {tier} are kept in data/records (there: {there}); run the tier instead")
    out = root / "reports" / tier / (kind or "")
    problems = render_all(root, tier, options or {}, out, kind == "archived") if kind else {}
    headers = planning.exhibits(root)
    shown = [load(out, header, problems.get(id)) for id, header in headers.items()]
    path = out / "claims.json"
    if not kind and not path.is_file():
        raise Failed(f"no {path}; run `snakemake --cores all`, or `lowmem report --tier {tier} --so-far`")
    kept_files.check_together(out / "claims")
    rows = read_json(path)
    write_text(out / "index.html", page(root, tier, shown, rows, kind))
    kept_files.seal_together(out / "index", [out / "index.html"])
    ro_crate.write(out, tier, PAPERS, rows, shown)
    return out / "index.html"


def render_all(root: Path, tier: str, options: dict, out: Path, archived: bool = False) -> dict[str, str]:
    """Every exhibit and claim from the records at hand; an exhibit that fails is reported, not fatal: {id: reason}."""
    problems = {}
    for id, header in planning.exhibits(root).items():
        try:
            exhibit.make(root, id, tier, options, out=out, archived=archived)
        except (Failed, Misuse, ArithmeticError, LookupError, TypeError, ValueError) as error:
            problems[id] = f"{type(error).__name__}: {error}"
            print(f"lowmem: exhibit {id}: {problems[id]}", file=sys.stderr)
            for path in files(out, header):
                path.unlink(missing_ok=True)  # an older version must not pass for the present one
    claims.gather(root, tier, out=out)
    return problems


def files(out: Path, header: dict) -> list[Path]:
    """Picture or table, csv and json of an exhibit."""
    folder, ending = ("figures", "svg") if header["kind"] == "figure" else ("tables", "md")
    return [out / folder / f"{header['id']}.{end}" for end in (ending, "csv", "json")]


def load(out: Path, header: dict, problem: str | None) -> dict:
    """One exhibit for the template; without files it says why instead of leaving a gap."""
    drawing, table, values = files(out, header)
    if not values.is_file():
        return {**header, "missing": problem or "not run: this exhibit was not made", "runs": [], "published": []}
    kept_files.check_together(values.with_suffix(""))
    loaded = read_json(values)
    loaded["svg"] = None
    links = [(f"{header['id']}.csv", data_link("text/csv", table.read_text(encoding="utf-8")))]
    if header["kind"] == "figure":
        picture = drawing.read_text(encoding="utf-8")
        loaded["svg"] = inline(picture, header["id"], f"{header['label']}: {loaded['caption']}")
        links.append((f"{header['id']}.svg", data_link("image/svg+xml", picture)))
    if loaded["points"]:
        rows = [[tables.cell(value) for value in row] for row in loaded["points"]["rows"]]
        text = tables.as_csv(loaded["points"]["columns"], rows)
        links.append((f"{header['id']}_points.csv", data_link("text/csv", text)))
    loaded["numeric"] = [numeric(column) for column in zip(*loaded["rows"], strict=True)]
    return {**loaded, "links": links, "missing": None, "partial": unfinished(loaded["runs"])}


def numeric(column: tuple[str, ...]) -> bool:
    """Whether most filled cells of a column are numbers, so that it stands right-aligned."""
    filled = [text for text in column if text]
    return sum(map(is_number, filled)) > len(filled) / 2


def is_number(text: str) -> bool:
    """Whether a cell is a number, perhaps with an interval or a remark in brackets."""
    return re.match(r"[+-]?\d[\d,]*(\.\d+)?%?($|\s[\[(])", text) is not None


def breakable(text: str):
    """A cell as markup: an interval may stand on a line of its own and is not broken itself."""
    from markupsafe import Markup

    number, bracket, interval = text.partition(" [")
    return Markup('{} <span class="tight">[{}</span>').format(number, interval) if bracket and is_number(text) else text


def unfinished(runs: list[dict]) -> str | None:
    """'3 of 18 runs are not done', or None."""
    left = sum(run["status"] != "done" for run in runs)
    return f"{left} of {len(runs)} runs are not done." if left else None


def data_link(kind: str, text: str) -> str:
    """A file as a link that needs no server. Of ASCII only what a link or an attribute cannot hold is quoted."""
    return f"data:{kind};charset=utf-8,{quote(text, safe=SAFE)}"


def inline(svg: str, id: str, label: str) -> str:
    """An svg file as an element of the page: unique ids, ink in the text colour, a label for screen readers."""
    from markupsafe import escape

    from lowmem.reporting.plots import INK

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{id}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{id}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{id}-\1"', svg)
    svg = svg.replace(INK, "currentColor")
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height|xmlns(:xlink)?)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(label)}">{rest}'


def page(root: Path, tier: str, shown: list[dict], rows: list[dict], kind: str | None) -> str:
    """The page's html."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(root / "workflow/report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    headers = planning.exhibits(root)
    for one in shown:
        if one.get("svg"):
            one["svg"] = Markup(one["svg"])
    runs = list({run["id"]: run for one in shown for run in one["runs"]}.values())
    topic_of = functools.partial(report_summary.topic, headers)
    standing = {}
    for key in PAPERS:
        own = [row for row in rows if row["paper"] == key]
        sizes = tuple(report_evidence.at_sizes(root, tier, runs, group) for group in report_evidence.by_standing(own))
        standing[key] = report_evidence.standing(own, report_summary.TOPICS, topic_of, sizes)
    by_exhibit: dict[str, list[dict]] = {}
    for row in rows:
        by_exhibit.setdefault(row["exhibit"], []).append(row)
    return environment.get_template("index.html.j2").render(
        tier=tier,
        kind=kind,
        about=experiments.load_tier(root, tier)["about"],
        shortcuts={id: name for id, name in SHORTCUTS.items() if id in headers},
        glance=report_summary.glance(headers, rows, PAPERS, tier),
        standing=standing,
        trained=report_evidence.trained(root, tier, runs),
        elsewhere=report_evidence.elsewhere(root, tier, rows),
        others=report_evidence.others(root),
        topics=report_summary.TOPICS,
        topic_of=topic_of,
        spent=report_summary.spent(runs),
        summary=summary(rows, runs, tier),
        counts={verdict: sum(row["verdict"] == verdict for row in rows) for verdict in WORDS},
        rows=rows,
        papers={key: paper for key, paper in PAPERS.items() if any(one["paper"] == key for one in shown)},
        shown=shown,
        by_exhibit=by_exhibit,
        provenance=provenance(runs),
        runs=runs,
        sources=sources(root, shown, rows),
        words=WORDS,
        signs=SIGNS,
        number=claims.number,
        ours=claims.shown_value,
        rule=words,
        entered=entered(rows),
        when=WHEN,
        is_number=is_number,
        breakable=breakable,
    )


def summary(rows: list[dict], runs: list[dict], tier: str) -> list[str]:
    """Three sentences: what came out, by paper and what failed, and how far it can be trusted."""
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in WORDS}
    outcome = ", ".join(f"{n} {WORDS[verdict]}" for verdict, n in count.items() if n)
    lent = collections.Counter(row["tier"] for row in rows if row["tier"] != tier)
    taken = "".join(f" ({count} of them by runs of tier {name}, which it takes over)" for name, count in lent.items())
    first = f"Of {len(rows)} claims, checked at tier {tier}{taken}: {outcome}."
    parts = []
    for key, paper in PAPERS.items():
        own = [row for row in rows if row["paper"] == key]
        if own:
            held = sum(row["verdict"] == "reproduced" for row in own)
            side = sum(row["verdict"] in ("direction_only", "same_direction") for row in own)
            direction = f" and {side} in direction" if side else ""
            parts.append(f"{paper['name']}: {held} of {len(own)} hold{direction}")
    second = "; ".join(parts) + f"; {contradictions([r for r in rows if r['verdict'] == 'contradicted'])}."
    done = sum(run["status"] == "done" for run in runs)
    third = f"This rests on {done} of {len(runs)} planned runs"
    if tier == "smoke":
        return [first, second, f"{third}, at a size that decides nothing: it shows only that every step works."]
    later = [row for row in rows if tier not in row["decides"]]
    if not later:
        return [first, second, f"{third}; this tier may decide every claim."]
    tiers = " or ".join(
        name for name in ("overnight", "workstation", "paper") if any(name in r["decides"] for r in later)
    )
    rest = f"{len(later)} of the claims are about sizes of models or effects that only tier {tiers} may confirm or contradict"
    if not tiers:
        return [first, second, f"{third}; {len(later)} of the claims can be decided by no tier here."]
    return [first, second, f"{third}; {rest}, so that here they say a direction at most."]


def entered(rows: list[dict]) -> str:
    """When the rules were written, counted."""
    count = {when: sum(row["entered"] == when for row in rows) for when in ("before", "after_trial", "after_data")}
    return (
        f"{count['before']} of the {len(rows)} rules were written before any run of a tier that decides, "
        f"{count['after_trial']} after trial runs or runs of smaller tiers, {count['after_data']} with such data in sight; "
        "the rule's reason says what was seen."
    )


def sources(root: Path, shown: list[dict], rows: list[dict]) -> dict[str, str]:
    """{tag: what it stands for} of the source tags that this page uses."""
    used = " ".join(
        [value["source"] for one in shown for value in one["published"]] + [r["published"]["source"] for r in rows]
    )
    known: dict[str, str] = {}
    for name in ("adam_mini", "lomo"):
        for tag, meaning in read_yaml(root / f"data/published/{name}.yaml")["sources"].items():
            known.setdefault(tag, meaning)
    return {tag: meaning for tag, meaning in known.items() if re.search(rf"(?<![\w-]){re.escape(tag)}(?![\w-])", used)}


def contradictions(rows: list[dict]) -> str:
    """The contradicted claims as text, by name if there are few."""
    if not rows:
        return "none is contradicted"
    if len(rows) > 2:
        return f"{len(rows)} are contradicted at a scale that may decide them"
    statements = "”, “".join(row["statement"].rstrip(".") for row in rows)
    return f"contradicted: “{statements}”"


def provenance(runs: list[dict]) -> dict:
    """Distinct machines, commits and package versions of the runs."""
    machines = sorted({describe(run["device"]) for run in runs if run["device"]})
    commits = sorted(
        {f"{run['commit']}{' with local changes' if run['dirty'] else ''}" for run in runs if run["commit"]}
    )
    versions: dict[str, set] = {}
    for run in runs:
        for name, version in run["packages"].items():
            if version is not None:
                versions.setdefault(name, set()).add(str(version))
    packages = {name: ", ".join(sorted(found)) for name, found in sorted(versions.items())}
    return {"machines": machines, "commits": commits, "packages": packages}


def describe(device) -> str:
    """A device as one line; records may hold a text or a dictionary."""
    if not isinstance(device, dict):
        return str(device)
    memory = f"{device['memory_bytes'] / 2**30:.0f} GiB" if device.get("memory_bytes") else None
    cores = f"{device['cores']} cores" if device.get("cores") else None
    parts = [
        device.get("name") or device.get("type"),
        cores,
        memory,
        device.get("platform"),
        *(device.get("flags") or []),
    ]
    return ", ".join(str(part) for part in parts if part)
