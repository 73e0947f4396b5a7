"""What the page sums up and what its figures say when they are pointed at."""

import os
import re
import time

import pytest
from synthetic import ROOT, checkout, write_losses
from synthetic_memory import write_explorer

from lowmem.exhibits import extra_explorer
from lowmem.files import read_json, write_json
from lowmem.pipeline import estimate, experiments
from lowmem.reporting import exhibit, hover, plots, report_summary


def rows(paper, exhibit, *verdicts, decides=("paper",)):
    return [{"paper": paper, "exhibit": exhibit, "verdict": verdict, "decides": list(decides)} for verdict in verdicts]


def test_verdicts_are_counted_by_paper_and_subject_of_their_exhibit():
    headers = {"a": {"topic": "cost"}, "b": {}}
    claims = rows("lomo", "a", "reproduced", "not_run", decides=["laptop"]) + rows("lomo", "b", "contradicted")
    [lomo] = report_summary.glance(headers, claims, {"adam_mini": {}, "lomo": {}}, "laptop")
    assert lomo["paper"] == "lomo"
    assert [(topic["key"], topic["text"]) for topic in lomo["topics"]] == [
        ("cost", "1 of 2 reproduced, 1 not run"),
        ("training", "0 of 1 reproduced, 1 contradicted; all can be decided only at a larger scale"),
    ]
    assert sum(sum(topic["counts"].values()) for topic in lomo["topics"]) == len(claims)


def test_time_is_added_up_by_experiment_most_first():
    began, ended = "2025-01-01T00:00:00+00:00", "2025-01-01T00:00:30+00:00"
    runs = [
        {"id": "short/a/seed0", "started": began, "ended": ended, "run_s": None, "steps_s": None},
        {"id": "long/a/seed0", "started": began, "ended": ended, "run_s": 80.0, "steps_s": 60.0},
        {"id": "long/b/seed0", "started": began, "ended": ended, "run_s": 40.0, "steps_s": 30.0},
        {"id": "gone/a/seed0", "started": None, "ended": None, "run_s": None, "steps_s": None},
    ]
    found = report_summary.spent(runs)
    assert [(row["experiment"], row["seconds"], row["steps"], row["longest"]) for row in found["rows"]] == [
        ("long", "120", "75%", "80"),
        ("short", "30", "", "30"),
    ]
    assert "2 minutes of runs; half of it in long." in found["text"]
    assert report_summary.spent(runs[-1:])["rows"] == []


@pytest.fixture
def drawing():
    with plots.style():
        drawn, panels = plots.figure([["left", "right"]])
    return drawn, panels["left"], panels["right"]


def test_points_lie_where_the_svg_draws_them_and_say_their_values_and_run(drawing):
    drawn, left, right = drawing
    left.plot([1, 2, 4], [0.5, float("nan"), 0.25], marker="o", label="_AdamW: sizes/a/seed0")
    left.set(xlabel="tokens", ylabel="loss")
    left.axhline(0.3)
    right.barh([0, 1], [12345.0, 2.0], color=plots.COLOURS["lomo"])
    right.set_yticks([0, 1], ["one", "two"])
    text = plots.svg(drawn)
    line, *bars = hover.series(drawn)
    assert (line["name"], line["x"], line["y"]) == ("AdamW: sizes/a/seed0", "tokens", "loss")
    points = [point.split("|") for point in line["at"]]
    assert [point[1:] for point in points] == [["1", "0.5"], ["4", "0.25"]]
    for place, *_ in points:  # matplotlib writes markers as <use x= y=>
        x, y = map(float, place.split())
        drawn_at = [tuple(map(float, found)) for found in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', text)]
        assert min(abs(x - a) + abs(y - b) for a, b in drawn_at) < 0.2
    assert [bar["at"][0].split("|")[1:] for bar in bars] == [["12,345", "one"], ["2", "two"]]


def test_long_lines_are_thinned_and_hidden_points_left_out(drawing):
    drawn, left, _ = drawing
    left.plot(range(1000), range(1000))
    left.set_ylim(0, 500)
    plots.svg(drawn)
    [line] = hover.series(drawn)
    assert (
        20 <= len(line["at"]) <= hover.MOST and max(float(p.split("|")[2].replace(",", "")) for p in line["at"]) <= 500
    )


def test_the_lines_of_a_loss_figure_name_their_runs(tmp_path):
    root = checkout(tmp_path)
    write_losses(root, "laptop")
    exhibit.make(root, "adam_mini_fig10", "laptop")
    found = read_json(root / "reports/laptop/figures/adam_mini_fig10.json")
    runs = {run["id"] for run in found["runs"]}
    named = {line["name"].rpartition(": ")[2] for line in found["hover"]}
    assert runs <= named


def test_the_explorer_says_what_fits_and_gives_no_speed_where_nothing_does(tmp_path):
    root = checkout(tmp_path)
    write_explorer(root)
    shown = exhibit.make(root, "extra_explorer", "laptop")
    cells = [dict(zip(shown.columns, row, strict=True)) for row in shown.rows]
    assert len(cells) == len(experiments.runs(root, "explorer", "laptop")) == shown.values["cells"]["value"]
    small = [cell for cell in cells if cell["optimizer"] == "AdamW" and "24 GB" in cell["machine"]]
    assert small and all(cell["fits"] == "no" and cell["tokens/s"] == "" for cell in small)
    assert {cell["fits"] for cell in cells if cell["optimizer"] == "LOMO"} == {"yes"}
    assert {(cell["peak GiB per GPU"], cell["weights"], cell["state"]) for cell in small} == {("60.0", "30.0", "15.0")}
    for name in shown.filters:
        assert len({cell[name] for cell in cells}) > 1
    assert set(shown.bars) <= set(shown.columns) and set(extra_explorer.PARTS) <= set(shown.columns)


def test_time_left_is_that_of_the_jobs_without_a_result(tmp_path):
    root = checkout(tmp_path)
    assert estimate.time_left(root, "smoke") is None
    jobs = {name: {"runs": experiments.runs(root, name, "smoke")} for name in ("quadratic", "rounding")}
    estimate.expect(root, "smoke", jobs)
    assert "2 of 2 jobs" in estimate.time_left(root, "smoke")
    for name, left in (("quadratic", "1 of 2 jobs"), ("rounding", None)):
        (root / "results/smoke" / name).mkdir(parents=True)
        (root / "results/smoke" / name / "done.json").write_text("{}")
        assert (left or "all runs are made; about") in estimate.time_left(root, "smoke")
    assert estimate.time_left(root, "smoke").endswith("of drawing left")


def test_a_pipeline_ends_with_its_time_its_runs_its_verdicts_and_its_page(tmp_path):
    jobs = {name: {"done": f"results/laptop/{name}/done.json"} for name in ("a", "b")}
    write_json(tmp_path / jobs["a"]["done"], [{"status": "done"}, {"status": "done"}, {"status": "diverged"}])
    began = time.time() - 720
    [line] = report_summary.closing(tmp_path, "laptop", jobs, began)
    assert line == "tier laptop: 12 min; jobs with results 1 of 2; runs: 2 done, 1 diverged"
    write_json(tmp_path / "reports/laptop/claims.json", [{"verdict": "reproduced"}, {"verdict": "not_run"}])
    (tmp_path / "reports/laptop/index.html").touch()
    more = report_summary.closing(tmp_path, "laptop", jobs, began)[1:]
    assert more == ["2 claims: 1 reproduced, 1 not run", "page: reports/laptop/index.html"]
    os.utime(tmp_path / "reports/laptop/index.html", (1, 1))  # of an earlier call: no news
    assert len(report_summary.closing(tmp_path, "laptop", jobs, began)) == 1


def test_a_job_opens_with_what_it_does_and_how_long_that_takes(tmp_path):
    root = checkout(tmp_path)
    runs = experiments.runs(root, "quadratic", "smoke")
    title = experiments.load_experiment(root, "quadratic")["title"]
    assert estimate.opening(root, "quadratic", runs).startswith(
        f"quadratic: {title}; {len(runs)} of {len(runs)} runs to make, about "
    )


def test_bars_tell_verdicts_of_one_colour_apart_by_a_pattern():
    css = (ROOT / "workflow/report/page.css").read_text()
    grey = re.search(r"^(\.[\w, .]+) \{ --own: var\(--soft\)", css, re.MULTILINE)[1].replace(".", "").split(", ")
    patterns = {name: re.findall(rf"^:is\(.stack, .key\) .{name} {{ (.*) }}$", css, re.MULTILINE) for name in grey}
    assert len(grey) == 5 and len({str(pattern) for pattern in patterns.values()}) == len(grey)
