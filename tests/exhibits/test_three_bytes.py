"""The exhibit of three bytes per parameter: panels of lengths that were run, and bytes as they were measured."""

import pytest
from synthetic import checkout, record

from lowmem.pipeline import experiments
from lowmem.reporting import claims, exhibit
from lowmem.reporting.values import exact
from lowmem.tasks import allocated_state

ID, TIER = "extra_three_bytes", "overnight"


def shown(tmp_path, monkeypatch, lengths: tuple[str, ...]):
    """The exhibit with made-up records of these lengths and of the bytes."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    root = checkout(tmp_path)
    for run in experiments.runs(root, "three_bytes", TIER):
        if run["variant"].split("-")[-1] in lengths:
            loss = 2.0 + 0.001 * run["seed"] + 0.01 * ("int8" in run["variant"])
            final = {"val_loss": loss, "train_loss": loss, "step": 1, "tokens": 1, "embedding_norm": 10 * loss}
            line = {"step": 1, "tokens": 1, "val_loss": loss, "train_loss": loss}
            record(root, run, final, [line], memory={"parameters": 400, "optimizer_state": 104})
    for run in experiments.runs(root, "three_bytes_state", TIER):
        kept = {"state_bytes": 1100, "counted_bytes": 1090, "parameters": 1000, "second_moment_scalars": 20}
        record(root, run, kept, [], memory={"optimizer_state": 1100})
    return exhibit.render(root, ID, TIER)[1], root


@pytest.mark.parametrize("lengths", [("s2440",), ("s813", "s2440"), ("s813",)])
def test_a_length_that_was_not_run_has_no_panel_and_no_rows(tmp_path, monkeypatch, lengths):
    made, _ = shown(tmp_path, monkeypatch, lengths)
    assert [axes.get_title("left") for axes in made.figure.axes] == [
        f"After {int(length[1:]):,} steps" for length in lengths
    ]
    assert {row[1] for row in made.rows} == {length[1:] for length in lengths}
    assert len(made.rows) == 8 * len(lengths)


def test_without_any_run_one_panel_says_so(tmp_path, monkeypatch):
    made, _ = shown(tmp_path, monkeypatch, ())
    assert [axes.get_title("left") for axes in made.figure.axes] == ["After 2,440 steps"]
    assert {text.get_text() for text in made.figure.axes[0].texts} == {"not run"}


def test_allocated_bytes_are_the_measured_ones_without_block_scalars(tmp_path, monkeypatch):
    made, _ = shown(tmp_path, monkeypatch, ("s2440",))
    assert made.values["allocated.int8"] == {"value": (1100 - 4 * 20) / 1000, "unit": "bytes per weight"}
    assert all(row[-1] == "1.020" for row in made.rows)
    assert made.values["state.fp32.s2440"]["value"] == pytest.approx(104 / 100)


TINY = {"name": "llama", "n_layer": 2, "n_head": 2, "n_embd": 64, "n_hidden": 128, "vocab_size": 96, "block_size": 32}
KEPT = [
    ("float32", 4.0, {}),
    ("bfloat16", 2.0, {}),
    ("int8", 1.0, {}),
    ("int8", 1.0, {"backward": {"max_grad_norm": 1.0}}),
]


@pytest.mark.parametrize(("dtype", "width", "more"), KEPT)
def test_the_allocator_holds_moments_scales_scalars_and_counters_and_nothing_else(tmp_path, dtype, width, more):
    optimizer = {"name": "adam_mini", "lr": 1e-3, "state_dtype": dtype, **more}
    config = {"model": TINY, "optimizer": optimizer, "measure": {"device": "cpu"}}
    final = allocated_state.measure(config, 0, tmp_path)["metrics"]["final"]
    counters = final["state_bytes"] - final["counted_bytes"]
    assert counters > 0 and counters % 4 == 0 and counters < 4 * 64, "one step counter per tensor"
    moment = final["counted_bytes"] - 4 * final["second_moment_scalars"]
    assert width <= moment / final["parameters"] < 1.03 * width


@pytest.mark.parametrize(("kept", "verdict"), [(1.016, "reproduced"), (1.05, "contradicted"), (2.0, "contradicted")])
def test_the_claim_about_bytes_is_decided_by_the_measured_value(tmp_path, kept, verdict):
    claim = next(row for row in claims.load(checkout(tmp_path)) if row["id"] == "extra_three_bytes_state")
    assert claims.row(claim, exact(kept, "bytes per weight"), TIER)["verdict"] == verdict
