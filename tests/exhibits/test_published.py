import numbers
import re

import pytest
from synthetic import ROOT

from lowmem.files import read_yaml
from lowmem.pipeline import planning
from lowmem.reporting import claims, exhibit, verdicts

FILES = {name: read_yaml(ROOT / f"data/published/{name}.yaml") for name in ("adam_mini", "lomo")}
ITEMS = {id: item for loaded in FILES.values() for id, item in loaded["items"].items()}
VALUES = [(id, value) for id, item in ITEMS.items() for value in item["values"]]


def test_every_value_has_source_and_confidence():
    for id, value in VALUES:
        assert value["source"], (id, value)
        assert value["confidence"] in ("high", "med", "low"), (id, value)
        assert value["origin"] in ("paper", "derived", "independent", "ours"), (id, value)


def test_what_rests_on_machine_written_reviews_or_on_memory_is_never_of_high_confidence():
    told = [value for _, value in VALUES] + [claim["published"] for claim in claims.load(ROOT)]
    weak = [value for value in told if re.search(r"ai-review|\bmemory\b", value["source"])]
    assert weak and not [value for value in weak if value["confidence"] == "high"]


def test_no_value_is_empty_and_unknown_ones_are_listed_instead():
    for id, value in VALUES:
        assert value["value"] is not None and value["value"] != "null", (id, value)
        assert value["what"], (id, value)
    assert all(item["values"] or item.get("unknown") for item in ITEMS.values())


def test_recalled_values_and_only_those_are_marked():
    for id, value in VALUES:
        assert bool(value.get("recalled")) == verdicts.recalled(value), (id, value)
    assert any(value.get("recalled") for _, value in VALUES)


def test_every_source_is_explained():
    for loaded in FILES.values():
        known = loaded["sources"]
        for item in loaded["items"].values():
            for value in item["values"]:
                assert any(tag in value["source"] for tag in known) or value["source"].startswith("web:"), value


@pytest.mark.parametrize("id", ITEMS)
def test_items_say_what_and_where_they_are(id):
    item = ITEMS[id]
    assert item["label"] and item["caption"] and item["kind"]
    assert len(item["caption"].split()) < 30
    assert item["number_source"] or "unknown" in item["label"] or "Appendix" in item["label"]


def test_one_place_holds_one_value():
    for id, item in ITEMS.items():
        places = [(value["what"], str(value.get("at"))) for value in item["values"]]
        assert len(places) == len(set(places)), id


def test_exhibits_name_items_that_exist():
    for header in planning.exhibits(ROOT).values():
        assert header["published"] in (None, "independent", "training_cells_predicted", *ITEMS), header["id"]


def test_numbers_are_numbers():
    cell = [v for v in ITEMS["adam_mini.table1"]["values"] if v.get("at", {}).get("model") == "Llama2-7B"]
    assert {v["value"] for v in cell if v["what"] == "state_memory"} == {53.92, 26.96, 28.04}
    assert all(isinstance(v["value"], numbers.Real) for v in cell)
    totals = [v["value"] for v in ITEMS["lomo.table1"]["values"] if v["what"] == "total_printed"]
    assert totals == [147.02, 102.20, 96.81, 51.99, 59.40, 14.58]


def test_lomo_totals_without_checkpointing_are_one_too_large():
    def cell(what, **at):
        return next(v["value"] for v in ITEMS["lomo.table1"]["values"] if v["what"] == what and v.get("at") == at)

    for optimizer in ("AdamW", "SGD", "LOMO"):
        for checkpointing, excess in ((False, 1.0), (True, 0.0)):
            at = {"optimizer": optimizer, "checkpointing": checkpointing}
            parts = sum(cell(what, **at) for what in ("params", "gradients", "optim_states", "activations"))
            assert cell("total_printed", **at) - parts == pytest.approx(excess, abs=0.006)


# -- what others measured ----------------------------------------------------------------------------------------------

OTHERS = read_yaml(ROOT / "data/published/independent.yaml")


def test_evidence_of_others_says_who_where_how_large_and_what_is_known_against_it():
    for entry in OTHERS["entries"]:
        told = ("id", "who", "address", "checked", "scale", "seeds", "tuning", "found", "against")
        assert all(str(entry[key]).strip() for key in told), entry["id"]
        assert entry["address"].startswith("https://")
    assert OTHERS["none_found"]


def test_evidence_of_others_names_claims_that_exist_and_changes_none():
    known = {claim["id"]: claim for claim in claims.load(ROOT)}
    named = {id for entry in OTHERS["entries"] for id in entry["bears_on"]}
    assert named and named <= known.keys()
    assert not any("gate" in known[id] and "independent" in known[id]["gate"]["value"] for id in named)
    assert not any(claim["exhibit"] == "extra_independent" for claim in known.values())


def test_the_twelve_cells_of_the_largest_sweep_are_shown_with_their_mean_gap():
    _, shown, _ = exhibit.render(ROOT, "extra_independent", "laptop")
    cells = [row for row in shown.rows if row[2].startswith("validation loss, ")]
    assert len(cells) == 12
    gaps = [float(row[5]) for row in cells]
    assert shown.values["wen.mean_gap"]["value"] == pytest.approx(sum(gaps) / 12, abs=5e-5)
    assert shown.values["wen.cells_behind"]["value"] == 11
    assert "+3.8 %" in {row[5] for row in shown.rows}
    told = [row for row in shown.rows if row[0]]
    assert len(told) == len(OTHERS["entries"]) and all(all(row[k] for k in (1, 6, 7)) for row in told)
    assert all(any(entry["address"] in line for line in shown.deviations) for entry in OTHERS["entries"])


def test_every_measured_training_step_of_others_is_shown_with_its_error_or_a_reason():
    _, shown, _ = exhibit.render(ROOT, "extra_planner_cells", "laptop")
    assert len(shown.rows) >= 95 and all(len(row) == len(shown.columns) for row in shown.rows)
    known = [row for row in shown.rows if row[8] in ("held out", "tuning")]
    assert len(known) == shown.values["known.cells"]["value"] and all(row[6].endswith(" %") for row in known)
    assert all(row[5] for row in shown.rows)
    assert shown.values["held_out.median_percent"]["value"] < 3 and shown.values["held_out.worst_percent"]["value"] < 10
    judged = [claim for claim in claims.load(ROOT) if claim["exhibit"] == "extra_planner_cells"]
    rows = [claims.row(claim, shown.values[claim["value"]], "laptop") for claim in judged]
    assert len(rows) == 3 and {row["verdict"] for row in rows} == {"reproduced"}
    assert {claim["entered"] for claim in judged} == {"after_data"}
