"""The planner beside what other people measured: the file, the rule of what is held out, and how far off it is."""

import statistics

import pytest
from synthetic import ROOT

from lowmem.errors import Misuse
from lowmem.files import read_yaml
from lowmem.memory import calibration, cells_page, measured_cells, training_cells

CELLS = read_yaml(ROOT / training_cells.FILE)
FOUND = training_cells.read(ROOT)
KNOWN = [cell for cell in FOUND["cells"] if training_cells.kind(cell) in ("held out", "tuning")]


def test_every_cell_says_where_it_was_read_and_the_predictions_belong_to_the_file():
    measured_cells.check(CELLS)
    assert all(source["address"].startswith("https://") and source["read"] for source in CELLS["sources"].values())
    assert [{k: v for k, v in cell.items() if k != "predicted"} for cell in FOUND["cells"]] == CELLS["cells"]
    assert len(CELLS["cells"]) >= 95 and len(KNOWN) >= 62


def test_what_is_held_out_follows_from_the_id_alone():
    held = {cell["id"] for cell in CELLS["cells"] if training_cells.held_out(cell)}
    assert len(held) == 41 and {"fms/0", "litgpt/llama-2-7b/nf4/b1"} <= held
    assert not any(cell.get("seen") for cell in CELLS["cells"] if cell["id"] in held)


def test_errors_of_the_known_cells_do_not_grow():
    found = training_cells.summary(FOUND)
    assert found["held out"]["cells"] == 27 and found["tuning"]["cells"] == 35
    assert found["held out"]["median"] <= 1.8 and found["held out"]["worst"] <= 9.0
    assert found["known"]["median"] <= 0.9 and found["known"]["worst"] <= 9.2


@pytest.mark.parametrize(
    ("name", "factor"), [("SPEED", training_cells.speed_factor), ("CARD", training_cells.card_factor)]
)
def test_the_intervals_come_from_the_tuning_half_and_hold_their_share_of_the_other(name, factor):
    tuning = [factor(cell) for cell in FOUND["cells"] if training_cells.kind(cell) == "tuning"]
    ends = getattr(calibration, name)
    assert calibration.interval([x for x in tuning if x]) == pytest.approx(ends, abs=6e-4)
    inside, count = training_cells.hits(FOUND, factor, ends[0], ends[2])
    assert count >= 12 and inside >= calibration.SHARE * count


def test_the_page_and_the_readme_say_what_the_predictions_say():
    assert (ROOT / cells_page.PAGE).read_text(encoding="utf-8") == cells_page.page(FOUND)
    assert cells_page.sentence(FOUND) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_says_which_held_out_cells_repeat_a_tuning_cell_and_how_sure_a_share_is():
    assert training_cells.repeated(FOUND) == ["fms/0", "fms/1", "fms/25", "fms/39"]
    text = cells_page.page(FOUND)
    others = [
        abs(training_cells.error(cell))
        for cell in KNOWN
        if training_cells.kind(cell) == "held out" and cell["id"] not in training_cells.repeated(FOUND)
    ]
    assert f"without them the median error is {statistics.median(others):.1f} %, the worst {max(others):.1f} %" in text
    assert (
        len(others) == 23
        and cells_page.of(10, 12) == "10 of 12 cells held out (95 % interval of that share 55 to 95 %, Wilson)"
    )
    assert cells_page.of(10, 12) in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "/" in line.split(" | ")[0]]
    assert len(rows) == len(FOUND["cells"]) and {len(row) for row in rows} == {13}
    assert ["| fms/12", "mistral-7b", "LoRA 16", "adamw_foreach", "bf16"] in [row[:5] for row in rows]


@pytest.mark.parametrize("id", ["fms/12", "gefenx/sweep/adamw8bit/0.6b", "gefenx/hardware/qlora/4b"])
def test_a_prediction_is_what_the_planner_says_now(id):
    (cell,) = [cell for cell in FOUND["cells"] if cell["id"] == id]
    now = measured_cells.predict(CELLS["models"], cell)
    assert now["peak_bytes"] == pytest.approx(cell["predicted"]["peak_bytes"], rel=1e-3)


@pytest.mark.slow
def test_all_predictions_are_what_the_planner_says_now():
    for cell in FOUND["cells"]:
        now = measured_cells.predict(CELLS["models"], cell)
        assert now.keys() == cell["predicted"].keys()
        assert now.get("peak_bytes", 0) == pytest.approx(cell["predicted"].get("peak_bytes", 0), rel=1e-3), cell["id"]


def test_an_unknown_setting_is_a_range_and_what_is_not_traced_a_reason():
    ranges = [cell for cell in FOUND["cells"] if training_cells.kind(cell) == "setting unknown"]
    assert len(ranges) == 4
    assert all(low < high for low, high in (cell["predicted"]["peak_bytes"] for cell in ranges))
    reasons = [cell for cell in FOUND["cells"] if training_cells.kind(cell) == "not modelled"]
    assert all(len(cell["predicted"]["reason"]) > 20 for cell in reasons)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bacth": 1}, "unknown key 'bacth'"),
        ({"source": "x"}, "source 'x'"),
        ({"model": "y"}, "model 'y'"),
        ({"measured": {"tokens_per_s": 1}}, "measured needs one of peak_bytes"),
        ({"measured": {"peak_gb": 1, "peak_gib": 1}}, "measured needs one of peak_bytes"),
    ],
)
def test_a_cell_with_a_wrong_key_is_refused(changes, says):
    cell = {**CELLS["cells"][0], **changes}
    with pytest.raises(Misuse, match=says):
        measured_cells.check({**CELLS, "cells": [cell]})


@pytest.mark.parametrize("key", ["batch", "seq_len", "precision"])
def test_a_setting_that_is_not_said_is_never_taken_as_the_default(key):
    cell = {name: value for name, value in CELLS["cells"][0].items() if name != key}
    with pytest.raises(Misuse, match=f"its {key} is missing; where the source does not say, give its range"):
        measured_cells.check({**CELLS, "cells": [cell]})
    measured_cells.check({**CELLS, "cells": [{**cell, "unknown": {key: [1, 2]}}]})


def test_two_unknown_settings_span_all_their_cases(monkeypatch):
    def product(_, cell):
        return {"peak_bytes": cell["batch"] * cell["seq_len"], "tokens_per_s": None}

    monkeypatch.setattr(measured_cells, "one", product)
    cell = {"unknown": {"batch": [4, 1], "seq_len": [10, 20, 5]}}
    assert measured_cells.predict({}, cell) == {"peak_bytes": [5, 80], "tokens_per_s": None}


def test_too_few_factors_make_no_interval():
    with pytest.raises(ValueError, match="too few"):
        calibration.interval([1.0, 1.1])
