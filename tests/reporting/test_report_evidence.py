"""What stands beside a verdict on the page: what was trained, the same claim elsewhere, what others measured."""

import re

import pytest
from synthetic import ROOT, checkout, write_losses

from lowmem.files import read_yaml, write_json
from lowmem.pipeline import experiments
from lowmem.reporting import claims, exhibit, report, report_evidence
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import parameters
from lowmem.reporting.runs import load


def row(verdict, statement="Water is wet.", topic="cost"):
    return {"verdict": verdict, "statement": statement, "topic": topic}


def test_the_first_sentence_says_sizes_and_text_of_what_was_trained():
    planned = [
        run
        for name in ("gpt2_sizes", "llama_scaling", "char_shakespeare")
        for run in experiments.runs(ROOT, name, "laptop")
    ]
    done = [{"id": run["id"], "status": "done"} for run in planned]
    told = report_evidence.trained(ROOT, "laptop", done)
    counts = [parameters(run["config"]["model"]) for run in planned]
    assert report_evidence.spell(min(counts)) in told and report_evidence.spell(max(counts)) in told
    assert "39 million to 13 billion" in told and "7 to 65 billion" in told and "bytes" in told
    assert told.startswith("Trained here (tier laptop)")


def test_a_model_that_was_only_planned_was_not_trained():
    runs = experiments.runs(ROOT, "llama_scaling", "laptop")
    done = [{"id": run["id"], "status": "done" if run["variant"].startswith("10k") else "missing"} for run in runs]
    told = report_evidence.trained(ROOT, "laptop", done)
    assert "language models of 9.7 thousand parameters, each on 194 thousand bytes" in told
    assert report_evidence.trained(ROOT, "laptop", []) == "No language model was trained (tier laptop)."


def test_three_sentences_say_what_holds_what_is_open_and_what_does_not():
    rows = [row("reproduced"), row("reproduced", topic="theory"), row("opposite_here"), row("not_testable")]
    rows += [row("contradicted", f"Claim {k}.") for k in range(5)]
    holds, left, fails = report_evidence.standing(rows, {"cost": "Memory", "theory": "Why"}, lambda one: one["topic"])
    assert holds == "Holds: 2 of 9 claims (1 on memory, 1 on why)."
    assert left == "Open: 2 (1 opposite here, 1 not testable here)."
    assert fails == "Does not hold: “Claim 0”; “Claim 1”; “Claim 2” and 2 more."
    assert "none that this tier may decide" in report_evidence.standing(rows[:1], {}, lambda one: "")[2]
    assert report_evidence.standing(rows, {}, lambda one: "", (", at 1", ", at 2", ", at 3"))[2].startswith(
        "Does not hold, at 3: “Claim 0”"
    )


def test_what_does_not_hold_names_the_sizes_trained_for_it():
    runs = [
        {"id": run["id"], "status": "done"}
        for name in ("llama_scaling", "superglue")
        for run in experiments.runs(ROOT, name, "laptop")
    ]
    rows = [
        {"exhibit": exhibit, "verdict": verdict}
        for exhibit, verdict in (
            ("adam_mini_table4", "contradicted"),
            ("lomo_table3", "inconclusive"),
            ("lomo_fig2", "contradicted"),
        )
    ]
    trained = ", where models were trained at"
    found = report_evidence.at_sizes(ROOT, "laptop", runs, report_evidence.by_standing(rows)[2])
    assert found == f"{trained} 9.7 thousand to 42 thousand parameters"
    rows[1]["verdict"] = "contradicted"
    both = report_evidence.at_sizes(ROOT, "laptop", runs, rows)
    assert both == f"{trained} 9.7 thousand to 42 thousand and at 135 million parameters"
    assert report_evidence.at_sizes(ROOT, "laptop", runs, rows[2:]) == ""  # for what fails there nothing was trained
    asked = [run for run in runs if "-zero" in run["id"]]
    assert asked and report_evidence.at_sizes(ROOT, "laptop", asked, rows) == ""  # only asked, not trained


def test_every_verdict_has_a_place_among_what_holds_is_open_or_fails():
    from lowmem.reporting.verdicts import WORDS

    places = [*report_evidence.HOLDS, *report_evidence.OPEN, *report_evidence.FAILS]
    assert sorted(places) == sorted(WORDS)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = checkout(tmp_path_factory.mktemp("page"))
    write_losses(root, "laptop")
    exhibit.make(root, "adam_mini_fig10", "laptop")
    rows = claims.gather(root, "laptop")
    other = [
        {**one, "tier": "overnight", "verdict": "reproduced"} for one in rows if one["id"] == "adam_mini_gpt2_on_par"
    ]
    write_json(root / "reports/overnight/claims.json", other)
    return report.make(root, "laptop").read_text(encoding="utf-8")


def test_the_page_opens_with_what_was_trained(page):
    summary = re.search(r'id="summary">(.*?)</p>', page, flags=re.DOTALL)[1]
    assert summary.startswith("<strong>Trained here (tier laptop): language models of ")
    assert "What was easy, what was hard, what could not be done" in page


def test_a_claim_shows_its_verdict_at_other_tiers_and_what_others_measured(page):
    shown = re.search(r'id="claim-adam_mini_gpt2_on_par".*?</tr>', page, flags=re.DOTALL)[0]
    assert re.search(r'data-name="other tiers">overnight: <span class="badge reproduced">', shown)
    bearing = [
        entry
        for entry in read_yaml(ROOT / "data/published/independent.yaml")["entries"]
        if "adam_mini_gpt2_on_par" in entry["bears_on"]
    ]
    assert bearing and all(entry["id"].replace("_", " ") in shown for entry in bearing)
    untouched = re.search(r'id="claim-lomo_second_order".*?</tr>', page, flags=re.DOTALL)[0]
    assert 'data-name="other tiers"></td>' in untouched
    assert re.search(r'data-name="what others measured" class="small"></td>', untouched)


def test_captions_open_with_size_and_text_and_axes_name_their_unit():
    runs = load(ROOT, ["gpt2_sizes"], "laptop", {}).all
    assert re.match(r"Models of [\d.]+k to [\d.]+k parameters, [\d.]+k training bytes each\. $", scale.about(runs))
    assert scale.loss(runs) == "validation loss (nat per byte)"
    paper = load(ROOT, ["gpt2_sizes"], "paper", {}).all
    assert scale.loss(paper) == "validation loss (nat per token)" and "B parameters" in scale.about(paper)
    assert scale.about([]) == ""
