import csv
import itertools
import os
import re
import subprocess
import sys

import pytest
from synthetic import ROOT, checkout, record, write_events, write_losses, write_state_memory

from lowmem import optim, provenance
from lowmem.errors import Misuse
from lowmem.exhibits import adam_mini_fig10, lomo_fig1
from lowmem.files import read_json, write_text
from lowmem.pipeline import experiments, planning
from lowmem.reporting import display, exhibit, plots, tables
from lowmem.reporting.runs import Outcome, Run, by_axis, load, load_run, unfinished, where


@pytest.fixture
def root(tmp_path):
    return checkout(tmp_path)


def paths(root, id, tier="laptop"):
    return {path.rsplit(".", 1)[1]: root / path for path in planning.exhibit_files(tier, planning.exhibits(root)[id])}


OWN = [
    id for id, header in planning.exhibits(ROOT).items() if header["experiments"] or header.get("also")
]  # the rest needs no run


@pytest.mark.parametrize("id", OWN)
@pytest.mark.parametrize("tier", experiments.tier_names(ROOT))
def test_without_records_every_exhibit_says_not_run_in_every_tier(root, id, tier):
    shown = exhibit.make(root, id, tier)
    written = paths(root, id, tier)
    assert all(path.is_file() for path in written.values())
    assert "not run: no record" in written["csv"].read_text()
    assert read_json(written["json"])["runs_used"] == []
    assert all(value["value"] is None and value["reason"] for value in shown.values.values())


@pytest.mark.parametrize("id", planning.exhibits(ROOT))
def test_csv_holds_exactly_the_shown_numbers(everything, id):
    root, shown = everything[0], everything[1][id]
    written = paths(root, id, "laptop/so_far")
    with open(written["csv"], newline="", encoding="utf-8") as f:
        columns, *rows = list(csv.reader(f))
    loaded = read_json(written["json"])
    assert columns == shown.columns == loaded["columns"]
    assert rows == loaded["rows"] == [[tables.cell(value) for value in row] for row in shown.rows]
    if "md" in written:
        lines = written["md"].read_text().splitlines()[4:]
        assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == rows


@pytest.mark.slow  # draws everything twice
def test_equal_records_give_equal_bytes(everything, tmp_path):
    root, _ = everything
    code = f"""
from pathlib import Path
from lowmem.reporting import exhibit; from lowmem.pipeline import planning
for id in planning.exhibits(Path({str(root)!r})):
    exhibit.make(Path({str(root)!r}), id, "laptop", out=Path({str(tmp_path)!r}))
"""
    seed = "7" if os.environ.get("PYTHONHASHSEED") != "7" else "8"  # of Python's hashes, which order sets
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=root)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = root / "reports/laptop/so_far"
    differing = [p.name for p in written if p.read_bytes() != (before / p.relative_to(tmp_path)).read_bytes()]
    assert not differing and len(written) == 4 * len(planning.exhibits(root))  # with the seal of the three


def test_figures_are_small_and_name_no_host_and_no_date(everything):
    for id, header in planning.exhibits(ROOT).items():
        if header["kind"] == "figure":
            text = (everything[0] / f"reports/laptop/so_far/figures/{id}.svg").read_text()
            assert len(text) < 300_000
            assert set(re.findall(r"https?://[^\"'\s]+", text)) <= {
                "http://www.w3.org/2000/svg",  # names of vocabularies, which nothing fetches
                "http://www.w3.org/1999/xlink",
            }
            assert "<text" in text and "20" + "25-" not in text


def test_a_record_of_another_configuration_is_not_shown(root):
    write_state_memory(root, "laptop")
    run = experiments.runs(root, "lomo_state_memory", "laptop")[0]
    record(root, run, {"param_bytes": 1, "live_grad_bytes": 1, "state_bytes": 1}, config_hash="0" * 16)
    exhibit.make(root, "lomo_table1", "laptop")
    assert "another configuration" in paths(root, "lomo_table1")["csv"].read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}'])
def test_a_damaged_record_is_not_shown_and_breaks_nothing(root, text):
    write_state_memory(root, "laptop")
    write_text(root / "results/laptop/lomo_state_memory/sgd/seed0/record.json", text)
    exhibit.make(root, "lomo_table1", "laptop")
    written = paths(root, "lomo_table1")["csv"].read_text()
    assert "the record is damaged" in written and "12.55" in written


def test_diverged_and_out_of_memory_are_shown_with_their_step(root):
    runs = experiments.runs(root, "gpt2_sizes", "laptop")
    write_losses(root, "laptop")
    record(root, runs[0], {"step": 12}, [], status="diverged", reason="train loss is not finite at step 12")
    record(root, runs[-1], {"step": 3}, [], status="oom")
    exhibit.make(root, "adam_mini_fig10", "laptop")
    written = paths(root, "adam_mini_fig10")["csv"].read_text()
    assert "diverged (train loss is not finite at step 12)" in written
    assert "out of memory (at step 3)" in written


def test_failed_runs_are_not_run_with_their_reason(root):
    run = experiments.runs(root, "lomo_state_memory", "laptop")[0]
    record(root, run, {}, status="failed", reason="no such file")
    assert load_run(root, run).reason == "not run: failed (no such file)"


def test_reasons_that_differ_in_numbers_alone_are_one_with_their_range():
    def run(seed, reason):
        return Run(f"e/v/seed{seed}", "e", "v", seed, {}, Outcome("diverged" if reason else "done", reason))

    far = [run(k, f"diverged (loss 9 at step {step})") for k, step in enumerate((85, 232, 99))]
    assert unfinished([*far, run(3, None)]) == "diverged (loss 9 at step 85 to 232): v/seed0 and 2 more of 4 runs"
    told = unfinished([*far[:1], run(1, "out of memory at step 7"), run(2, "out of memory at step 7")])
    assert told == "diverged (loss 9 at step 85): v/seed0; out of memory at step 7: v/seed1 and 1 more of 3 runs"
    assert unfinished([run(0, None)]) is None


def test_unknown_exhibit_names_the_nearest_one(root):
    with pytest.raises(Misuse, match="did you mean 'lomo_table1'"):
        exhibit.make(root, "lomo_tabel1", "laptop")


def test_every_planned_run_is_listed_with_its_outcome(root):
    write_state_memory(root, "laptop")
    exhibit.make(root, "adam_mini_table1", "laptop")
    listed = read_json(paths(root, "adam_mini_table1")["json"])["runs"]
    planned = [run["id"] for run in experiments.runs(root, "adam_mini_state_memory", "laptop")]
    assert [run["id"] for run in listed] == planned
    assert {run["status"] for run in listed} == {"done"} and listed[0]["commit"] == "c0ffee"


def test_markdown_cells_cannot_break_the_table():
    assert tables.markdown("c", ["a|b"], [["x|y\nz"]]).splitlines()[2:] == ["| a\\|b |", "| --- |", "| x\\|y z |"]


def test_table1_shows_both_shapes_of_the_1b_model_and_the_old_partition(root):
    write_state_memory(root, "laptop")
    _, shown, _ = exhibit.render(root, "adam_mini_table1", "laptop")
    models = [row[0] for row in shown.rows]
    assert sum("TinyLlama" in model for model in models) == 2 and sum("official" in model for model in models) == 2
    assert [row[0] for row in shown.rows if row[2].endswith("v1.0")] == ["Llama2-7B"]
    row = next(row for row in shown.rows if row[0] == "Llama2-7B" and row[2] == "AdamW")
    assert row[3:5] == ["53.91", "50.21"] and row[7].startswith("53.92")
    recalled = [row[7] for row in shown.rows if row[0] == "Llama3-8B"]
    assert all("(recalled)" in cell for cell in recalled)


def test_lomo_table1_states_the_totals_that_do_not_add_up(root):
    write_state_memory(root, "laptop")
    _, shown, _ = exhibit.render(root, "lomo_table1", "laptop")
    off = [row[7] for row in shown.rows if row[1:3] == ["off", "published"]]
    assert off == [
        "147.02 (parts add up to 146.02)",
        "96.81 (parts add up to 95.81)",
        "59.40 (parts add up to 58.40)",
    ]
    ours = {row[0]: row[3:6] for row in shown.rows if row[2] == "ours"}
    assert ours == {
        "AdamW": ["12.55", "12.55", "75.31"],
        "SGD": ["12.55", "12.55", "25.10"],
        "LOMO": ["12.55", "0.24", "0.00"],
    }
    assert all(row[6] == "not run: no record" for row in shown.rows if row[2] == "ours")  # simulated, and not here


def test_fig10_pairs_seeds_so_that_what_they_share_cancels(root):
    write_losses(root, "laptop", gap=0.004, early=0.03)  # seeds differ by 0.1, pairs by 0.0005
    _, shown, _ = exhibit.render(root, "adam_mini_fig10", "laptop")
    worst = shown.values["gap.worst"]
    noise = 0.0005 * 1.5  # mean over six seeds of what write_losses adds
    assert worst["value"] == pytest.approx(0.004 + noise) and worst["n"] == 6 and worst["method"] == "t"
    assert worst["high"] - worst["low"] < 0.003
    assert shown.values["gap.shrink"]["value"] == pytest.approx(0.026)
    assert shown.values["gap.shrink"]["low"] <= 0.026 + 1e-9 <= shown.values["gap.shrink"]["high"] + 2e-9


def test_fig10_of_one_seed_has_no_interval(root, monkeypatch):
    alone = [run for run in experiments.runs(root, "gpt2_sizes", "laptop") if run["seed"] == 0]
    monkeypatch.setattr(experiments, "runs", lambda *_: alone)
    write_losses(root, "laptop")
    _, shown, _ = exhibit.render(root, "adam_mini_fig10", "laptop")
    assert shown.values["gap.worst"]["low"] is None and shown.values["gap.worst"]["n"] == 1


def test_fig10_margin_is_the_one_of_the_claim():
    from lowmem.reporting import claims, verdicts

    rule = next(one["rule"] for one in claims.load(ROOT) if one["id"] == "adam_mini_gpt2_on_par")
    assert verdicts.bounds(rule)[1] == adam_mini_fig10.MARGIN


def test_lomo_fig1_finds_how_long_each_gradient_lives(root):
    write_events(root, "laptop")
    runs = load(root, ["lomo_event_order"], "laptop", {})
    assert lomo_fig1.lifetimes(runs.one(depth=3, optimizer="lomo").curve()) == {
        "P3": (0, 2),
        "P2": (2, 4),
        "P1": (4, 6),
    }
    assert lomo_fig1.lifetimes(runs.one(depth=3, optimizer="sgd").curve()) == {"P3": (0, 6), "P2": (1, 6), "P1": (2, 6)}


def test_lomo_fig1_measures_growth_with_depth(root):
    write_events(root, "laptop")
    values = exhibit.render(root, "lomo_fig1", "laptop")[1].values
    assert values["lomo.growth"]["value"] == 1
    assert values["sgd.growth"]["value"] == 1
    assert values["lomo.peak_in_largest_gradients"]["value"] == 1


@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117"])
def test_colours_are_distinct_and_stand_out_on_white_and_dark(ground):
    def luminance(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    own = [plots.COLOURS[name] for name in optim.names()]  # versions of one optimizer share its colour
    assert len(set(own)) == len(own)
    for colour in [*plots.COLOURS.values(), *plots.SERIES, *plots.SPARE, plots.INK]:
        bright, dim = sorted([luminance(colour), luminance(ground)], reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 3, colour


def test_end_labels_keep_their_distance():
    with plots.style():
        drawn, panels = plots.figure([["a"]])
        panels["a"].plot([0, 1], [0, 1])
        plots.end_labels(panels["a"], [(1, 0.5, "one", "k"), (1, 0.501, "two", "k"), (1, 0.502, "three", "k")])
        plots.settle(drawn)
        drawn.draw_without_rendering()
        words = [text for text in panels["a"].texts if text.get_text()]  # the others are lines to them
        boxes = sorted((t.get_window_extent() for t in words), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))


def test_end_labels_at_the_top_stay_beside_their_panel():
    with plots.style():
        drawn, panels = plots.figure([["a"]])
        panels["a"].plot([0, 1], [0, 1])
        plots.end_labels(panels["a"], [(1, 1.0, name, "k") for name in ("one", "two", "three")])
        plots.settle(drawn)
        drawn.draw_without_rendering()
        tops = [t.get_window_extent().y1 for t in panels["a"].texts]
    assert max(tops) < panels["a"].bbox.y1 + 12


def test_saved_panels_leave_room_for_what_stands_beside_them():
    with plots.style():
        drawn, panels = plots.figure([["a", "b"]])
        for axes in panels.values():
            axes.plot([0, 1], [1000, 2000])
            axes.set_ylabel("a quantity (unit)")
            plots.end_labels(axes, [(1, 2000, "a rather long name", "k")])
        plots.svg(drawn)
        drawn.draw_without_rendering()
        left, right = (axes.get_tightbbox() for axes in panels.values())
    assert left.x1 < right.x0 and left.x0 >= 0 and right.x1 <= drawn.bbox.x1


def test_optimizers_and_their_versions_have_colours_and_names():
    assert set(plots.COLOURS) <= set(display.NAMES)  # what has no colour is drawn in ink
    assert set(optim.names()) <= set(plots.COLOURS)


def test_a_new_optimizer_has_a_colour_and_a_name_by_its_file(tmp_path, monkeypatch):
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim/sign_descent.py").touch()
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    assert display.name("sign_descent") == "Sign descent" and plots.look("sign_descent")["color"] in plots.SPARE
    assert display.name("no_file") == "no_file" and plots.look("no_file")["color"] == plots.INK
    assert not {*plots.SPARE} & {plots.COLOURS[name] for name in optim.names()}


def test_runs_are_chosen_by_their_place_on_the_axes_and_those_that_were_looked_at_count_as_used(root):
    write_events(root, "laptop")
    runs = load(root, ["lomo_event_order"], "laptop", {})
    assert [run.variant for run in where(runs, depth=6)] == ["layers6-sgd", "layers6-lomo"]
    assert list(by_axis(runs, "depth")) == [3, 6, 12, 24] and (3, "lomo") in by_axis(runs, "depth", "optimizer")
    assert by_axis(runs, "rank") == {} and runs.used() == []
    assert runs.one(depth=6, optimizer="lomo").final("live_peak") and runs.used() == [
        "lomo_event_order/layers6-lomo/seed0"
    ]
    absent = runs.one(depth=7, optimizer="lomo")
    assert absent.reason == "not run: not planned in this tier" and absent.variant == "7-lomo"


def test_an_exhibit_names_the_runs_that_it_read(root):
    write_events(root, "laptop")
    exhibit.make(root, "lomo_fig1", "laptop")
    named = read_json(paths(root, "lomo_fig1", "laptop")["json"])
    assert named["runs_used"] == [run["id"] for run in named["runs"]] and len(named["runs"]) == 8
