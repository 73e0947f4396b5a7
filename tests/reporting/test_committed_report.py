"""The committed laptop report is what the archived records give, wherever all records of an exhibit are archived."""

import json

import pytest
from synthetic import ROOT

from lowmem.files import read_json
from lowmem.pipeline import archive, experiments, planning
from lowmem.reporting import claims, exhibit, tables
from lowmem.reporting.numbers import superglue
from lowmem.reporting.report_evidence import COMMITTED

REPORT = ROOT / COMMITTED / "laptop"
TIERS = ("laptop", "overnight")


def archived(tier: str) -> dict[str, dict]:
    """{id: header} of the exhibits whose records are all kept in data/records."""
    known, found = set(archive.names(ROOT)), {}
    for id, header in planning.exhibits(ROOT).items():
        own = {source(name, tier, known) for name in planning.shown_by(header, tier)}
        if {*own, *header.get("archived", [])} <= known:
            found[id] = header
    return found


def source(name: str, tier: str, known: set[str]) -> str:
    """The archive that a tier draws an experiment from: its own, or that of the tier that sets it."""
    own = f"{tier}/{name}"
    return own if own in known else f"{experiments.set_by(ROOT, name, tier)}/{name}"


@pytest.mark.slow  # renders every archived exhibit
@pytest.mark.parametrize("tier", TIERS)
def test_rows_values_and_verdicts_of_the_committed_report_follow_from_the_archived_records(tier):
    report = ROOT / COMMITTED / tier
    committed = {row["id"]: row for row in read_json(report / "claims.json")}
    headers = archived(tier)
    assert headers
    for id, header in headers.items():
        folder = "figures" if header["kind"] == "figure" else "tables"
        written = read_json(report / folder / f"{id}.json")
        _, shown, _ = exhibit.render(ROOT, id, tier, archived=True)
        assert [[tables.cell(value) for value in row] for row in shown.rows] == written["rows"], id
        assert json.loads(json.dumps(shown.values)) == written["values"], id
        for claim in (one for one in claims.load(ROOT) if one["exhibit"] == id and one["id"] in committed):
            premise = written["values"].get(claim.get("gate", {}).get("value"))
            judged = claims.evidence_tier(ROOT, header, tier)
            found = claims.verdict(claim, written["values"][claim["value"]], judged, premise)[0]
            assert found == committed[claim["id"]]["verdict"], claim["id"]


def test_every_cell_of_the_superglue_table_is_a_number_or_says_why_there_is_none():
    shown = read_json(REPORT / "tables/lomo_table3.json")
    rows = [row for row in shown["rows"] if row[3]]
    assert {"no training", "LoRA", "LOMO"} <= {row[0] for row in rows}
    for row in rows:
        cells = row[4 : 4 + len(superglue.TASKS)]
        reasons = ("not run", "other data", "not learnable", "no number")
        assert all(cell[:1].isdigit() or cell.startswith(reasons) for cell in cells), row


@pytest.mark.parametrize("tier", TIERS)
def test_pictures_and_tables_of_the_committed_report_are_all_there_and_small(tier):
    report = ROOT / COMMITTED / tier
    files = {path.name: path for folder in ("figures", "tables") for path in (report / folder).iterdir()}
    files = {name: path for name, path in files.items() if path.suffix != ".sha256"}
    assert len(files) > 90
    for name, path in files.items():
        id = name.partition(".")[0]
        kind = planning.exhibits(ROOT)[id]["kind"]
        assert {f"{id}.csv", f"{id}.json", f"{id}.{'svg' if kind == 'figure' else 'md'}"} <= files.keys()
        assert path.suffix != ".svg" or path.stat().st_size <= 300_000, name
