"""A report as an RO-Crate 1.1: ro-crate-metadata.json beside it names papers, files and each claim with its verdict.

A claim is an entity of type Claim (schema.org): what the paper says, where, what is published, what was found, the verdict
and why. So a program can ask which claims of a paper hold, at which tier, without reading the page.
"""

from pathlib import Path

from lowmem import __version__
from lowmem.files import write_json
from lowmem.reporting.verdicts import WORDS

NAME = "ro-crate-metadata.json"
KINDS = {".svg": "image/svg+xml", ".csv": "text/csv", ".json": "application/json", ".md": "text/markdown"}


def write(out: Path, tier: str, papers: dict[str, dict], rows: list[dict], shown: list[dict]) -> Path:
    """Write the crate of the report in `out`: its files, its papers, its exhibits and all rows of claims.json."""
    write_json(out / NAME, crate(out, tier, papers, rows, shown))
    return out / NAME


def crate(out: Path, tier: str, papers: dict[str, dict], rows: list[dict], shown: list[dict]) -> dict:
    """The JSON-LD of a crate."""
    files = sorted(
        path for folder in ("figures", "tables") for path in (out / folder).glob("*") if path.suffix in KINDS
    )
    files += [path for path in (out / "claims.json", out / "claims.md") if path.is_file()]
    ended = max((run["ended"] for one in shown for run in one["runs"] if run.get("ended")), default="1970-01-01")
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"Adam-mini and LOMO, reproduced: report of tier {tier}",
        "description": "Every table and figure beside the published values, and a verdict on each claim of the papers.",
        "datePublished": ended[:10],
        "license": {"@id": "https://spdx.org/licenses/MIT"},
        "version": __version__,
        "hasPart": [{"@id": path.relative_to(out).as_posix()} for path in files],
        "mentions": [{"@id": f"#claim-{row['id']}"} for row in rows],
        "about": [{"@id": paper["@id"]} for paper in articles(papers)],
    }
    head = {
        "@id": NAME,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    licence = {"@id": "https://spdx.org/licenses/MIT", "@type": "CreativeWork", "name": "MIT License"}
    listed = [file(path, out) for path in files]
    return {
        "@context": "https://w3id.org/ro/crate/1.1/context",
        "@graph": [
            head,
            root,
            licence,
            *articles(papers),
            *listed,
            *(entity for row in rows for entity in claim(row, papers)),
        ],
    }


def articles(papers: dict[str, dict]) -> list[dict]:
    """The papers as entities."""
    return [
        {"@id": f"https://arxiv.org/abs/{paper['arxiv']}", "@type": "ScholarlyArticle", "name": paper["name"]}
        for paper in papers.values()
        if paper["arxiv"]
    ]


def file(path: Path, out: Path) -> dict:
    """A file of the report as an entity of the crate."""
    return {
        "@id": path.relative_to(out).as_posix(),
        "@type": "File",
        "name": path.stem,
        "encodingFormat": KINDS[path.suffix],
        "contentSize": str(path.stat().st_size),
    }


def claim(row: dict, papers: dict[str, dict]) -> list[dict]:
    """One claim and its properties; what schema.org has no word for is a PropertyValue named as in claims.json."""
    arxiv = (papers.get(row["paper"]) or {}).get("arxiv")
    values = {key: row[key] for key in ("verdict", "ours", "tier", "n", "entered", "exhibit")}
    values["published"] = f"{row['published']['value']} {row['published']['unit'] or ''}".strip()
    values["interval"] = None if row["interval"] is None else "{} to {}".format(*row["interval"])
    properties = [
        {"@id": f"#claim-{row['id']}-{key}", "@type": "PropertyValue", "name": key, "value": value}
        for key, value in values.items()
        if value is not None
    ]
    entity = {
        "@id": f"#claim-{row['id']}",
        "@type": "Claim",
        "name": row["id"],
        "text": row["statement"],
        "description": f"{WORDS[row['verdict']]}: {row['reason']}",
        "additionalProperty": [{"@id": one["@id"]} for one in properties],
    }
    appears = {"appearance": {"@id": f"https://arxiv.org/abs/{arxiv}"}} if arxiv else {}
    return [{**entity, **appears}, *properties]
