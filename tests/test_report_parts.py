"""What the page sums up and what its figures say when they are pointed at."""

import re

import pytest
from synthetic import checkout, record, write_losses

from lowmem import estimate, exhibit, experiments, kept, plots, report_parts
from lowmem.drawing import hover
from lowmem.exhibits import extra_explorer
from lowmem.files import read_json


def rows(paper, exhibit, *verdicts, decides=("paper",)):
    return [{"paper": paper, "exhibit": exhibit, "verdict": verdict, "decides": list(decides)} for verdict in verdicts]


def test_verdicts_are_counted_by_paper_and_subject_of_their_exhibit():
    headers = {"a": {"topic": "cost"}, "b": {}}
    claims = rows("lomo", "a", "reproduced", "not_run", decides=["laptop"]) + rows("lomo", "b", "contradicted")
    [lomo] = report_parts.glance(headers, claims, {"adam_mini": {}, "lomo": {}}, "laptop")
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
    found = report_parts.spent(runs)
    assert [(row["experiment"], row["seconds"], row["steps"], row["longest"]) for row in found["rows"]] == [
        ("long", "120", "75%", "80"),
        ("short", "30", "", "30"),
    ]
    assert "2 minutes of runs; half of it in long." in found["text"]
    assert report_parts.spent(runs[-1:])["rows"] == []


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


def write_explorer(root):
    """Synthetic cells: AdamW needs 60 GiB, every other optimizer 20."""
    for run in experiments.runs(root, "explorer", "laptop"):
        peak = (60 if run["config"]["optimizer"]["name"] == "adamw" else 20) * 2**30
        usable = 23 * 2**30 if "3090" in run["variant"] or "4090" in run["variant"] else 79 * 2**30
        final = {"batch": 1, "fits": peak <= usable, "peak_bytes": peak, "tokens_per_s": 1234.0}
        parts = {"parameters": peak / 2, "gradients": 0, "optimizer_state": peak / 4, "activations": peak / 4}
        record(root, run, final, memory={**parts, "communication": 0, "temporaries": 0, "peak": peak})
    kept.keep(root, "laptop/explorer")


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
        assert estimate.time_left(root, "smoke") is None if left is None else left in estimate.time_left(root, "smoke")
