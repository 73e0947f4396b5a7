"""The committed laptop report is what the archived records give, wherever all records of an exhibit are archived."""

import json

import pytest
from synthetic import ROOT

from lowmem import claims, exhibit, kept, plan
from lowmem.drawing import fine_tuning
from lowmem.files import read_json

REPORT = ROOT / "reports/laptop"


def archived() -> dict[str, dict]:
    """{id: header} of the exhibits whose records are all kept in data/records."""
    known = set(kept.names(ROOT))
    wanted = {
        id: {*(f"laptop/{name}" for name in header["experiments"]), *header.get("archived", [])}
        for id, header in plan.exhibits(ROOT).items()
    }
    return {id: plan.exhibits(ROOT)[id] for id, names in wanted.items() if names <= known}


@pytest.mark.slow  # renders every archived exhibit
def test_rows_values_and_verdicts_of_the_committed_report_follow_from_the_archived_records():
    committed = {row["id"]: row for row in read_json(REPORT / "claims.json")}
    headers = archived()
    assert headers
    for id, header in headers.items():
        folder = "figures" if header["kind"] == "figure" else "tables"
        written = read_json(REPORT / folder / f"{id}.json")
        _, shown, _ = exhibit.render(ROOT, id, "laptop", archived=True)
        assert [[exhibit.cell(value) for value in row] for row in shown.rows] == written["rows"], id
        assert json.loads(json.dumps(shown.values)) == written["values"], id
        for claim in (one for one in claims.load(ROOT) if one["exhibit"] == id and one["id"] in committed):
            premise = written["values"].get(claim.get("gate", {}).get("value"))
            found = claims.verdict(claim, written["values"][claim["value"]], "laptop", premise)[0]
            assert found == committed[claim["id"]]["verdict"], claim["id"]


def test_every_method_stands_in_the_superglue_table_with_an_interval_in_every_column_that_packages_fill():
    shown = read_json(REPORT / "tables/lomo_table3.json")
    columns = shown["columns"]
    rows = {
        row[0]: dict(zip(columns, row, strict=True))
        for row in shown["rows"]
        if "archived" in row[2] and row[3] and "best" not in row[3]
    }
    assert rows.keys() == {
        name for key, name in fine_tuning.METHODS.items() if key != "lora_lomo"
    }  # that one: Figure 3
    for name, row in rows.items():
        cells = {column: row[column] for column in columns[4:]}
        assert cells.pop("WSC") == fine_tuning.needs("wsc")
        assert len(cells) == 6 and all("[" in cell for cell in cells.values()), (name, cells)


def test_pictures_and_tables_of_the_committed_report_are_all_there_and_small():
    files = {path.name: path for folder in ("figures", "tables") for path in (REPORT / folder).iterdir()}
    assert len(files) > 90
    for name, path in files.items():
        id = name.partition(".")[0]
        kind = plan.exhibits(ROOT)[id]["kind"]
        assert {f"{id}.csv", f"{id}.json", f"{id}.{'svg' if kind == 'figure' else 'md'}"} <= files.keys()
        assert path.suffix != ".svg" or path.stat().st_size <= 300_000, name
