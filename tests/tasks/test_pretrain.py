"""Pre-training's batches and windows: what is drawn, what is measured, and what the curve says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ADAM_MINI, LOMO, curve, make_root, make_run

from lowmem.data import token_windows
from lowmem.errors import Misuse
from lowmem.pipeline import record
from lowmem.tasks import pretrain, pretrain_nudged
from lowmem.training import job


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


def test_batches_are_a_pure_function_of_seed_and_index(root):
    run = make_run()
    one, two = (pretrain.build(run["config"], 3, root, "cpu") for _ in range(2))
    for index in (5, 0, 7, 5):
        for left, right in zip(one.batch(index), two.batch(index)):
            assert torch.equal(left, right)
    other_seed = pretrain.build(run["config"], 4, root, "cpu")
    assert not torch.equal(one.batch(0)[0], other_seed.batch(0)[0])
    assert not torch.equal(one.batch(0)[0], one.batch(1)[0])


def test_windows_do_not_depend_on_the_micro_batch_size():
    tokens = np.arange(1000, dtype=np.uint16)
    whole = token_windows.train_windows(tokens, 8, seed=1, first=6, count=6)
    parts = [token_windows.train_windows(tokens, 8, seed=1, first=first, count=2) for first in (6, 8, 10)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert len({int(row[0]) for row in whole}) > 3


def test_windows_cover_the_file_evenly():
    tokens = np.arange(108, dtype=np.uint16)
    starts = token_windows.train_windows(tokens, 8, seed=0, first=0, count=20000)[:, 0]
    counts = np.bincount(starts, minlength=100)
    assert len(counts) == 100 and counts.min() > 140 and counts.max() < 260


def test_targets_are_the_next_tokens_and_validation_windows_do_not_overlap(root):
    tokens, targets = pretrain.build(make_run()["config"], 0, root, "cpu").batch(0)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    windows = token_windows.val_windows(np.arange(100), 8, 5, Path("x"))
    assert np.array_equal(windows[:, 1:].ravel(), np.arange(1, 41))


def test_named_starts_are_measured_at_the_end_and_enter_the_record(root):
    evaluated = [0, 16, 32, 48, 64, 80, 96, 112]  # the evaluation's own eight windows
    (root / "starts.yaml").write_text(f"starts: {evaluated}\n")
    run = make_run()
    run["config"]["measure"] = {"starts": "starts.yaml"}
    made = job.train_run(root, run)
    assert made["metrics"]["final"]["starts_loss"] == pytest.approx(made["metrics"]["final"]["val_loss"], rel=1e-6)
    assert "starts.yaml" in made["code"]["files"]
    (root / "starts.yaml").write_text("starts: [3, 500, 900]\n")
    again = job.train_run(root, run)
    assert again["metrics"]["final"]["starts_loss"] != made["metrics"]["final"]["starts_loss"]


@pytest.mark.parametrize(
    "measure, said",
    [
        ({"starts": "none.yaml"}, "none.yaml does not exist"),
        ({"starts": "far.yaml"}, "starts 1 to 984; the validation text holds 0 to 983"),
        ({"starts": "empty.yaml"}, "no list under `starts`"),
        ({"start": "far.yaml"}, "measure: unknown key 'start'"),
        ({"held_out": "half"}, "'half'; write whole, or leave it out"),
    ],
)
def test_starts_that_do_not_fit_are_refused(root, measure, said):
    (root / "empty.yaml").write_text("places: [1]\n")
    (root / "far.yaml").write_text("starts: [1, 984]\n")  # 1,000 tokens, windows of 16 and the token after
    run = make_run()
    run["config"]["measure"] = measure
    made = job.train_run(root, run)
    assert made["status"] == "failed" and said in made["reason"]


def test_evaluation_windows_are_spread_over_the_whole_text_without_overlap():
    tokens = np.arange(1000)
    windows = pretrain.spread_windows(tokens, 16, 10, Path("x"))
    assert windows.shape == (10, 17) and windows[0, 0] == 0 and windows[-1, 0] > 850
    assert (np.diff(windows[:, 0]) >= 16).all() and not (windows[:, 0] % 16).any()
    every = pretrain.spread_windows(tokens, 16, 62, Path("x"))
    assert np.array_equal(every[:, 1:].ravel(), np.arange(1, 62 * 16 + 1))
    with pytest.raises(Misuse, match=r"holds 62 validation windows of 16 tokens, not 63; lower train.eval_windows"):
        pretrain.spread_windows(tokens, 16, 63, Path("x"))


def test_the_final_loss_is_that_of_the_whole_held_out_text_and_each_window_is_kept(root):
    run = make_run(eval_windows=62)  # all windows of the tiny text, so both must agree
    run["config"]["measure"] = {"held_out": "whole"}
    made = job.train_run(root, run)
    kept = record.read_arrays(record.folder(root, run), made)["val_window_losses"]
    assert kept.shape == (62,) and kept.dtype == np.float16
    assert made["metrics"]["final"]["val_loss"] == pytest.approx(curve(root, run)[-1]["val_loss"], rel=1e-12)
    assert made["metrics"]["final"]["val_loss"] == pytest.approx(float(kept.astype(np.float64).mean()), abs=1e-3)


def test_a_line_of_the_curve_is_the_mean_of_its_steps(root):
    every, third = make_run("a", steps=20, eval_every=10), make_run("b", steps=20, eval_every=10, log_every=3)
    for run in (every, third):
        job.train_run(root, run)
    losses = [row["train_loss"] for row in curve(root, every)[1:]]
    rows = curve(root, third)[1:]
    assert [row["step"] for row in rows] == [
        3,
        6,
        9,
        10,
        12,
        15,
        18,
        20,
    ]  # an evaluation and the last step write one, too
    for before, row in zip([0, *(row["step"] for row in rows)], rows):
        part = losses[before : row["step"]]
        assert row["train_loss"] == pytest.approx(sum(part) / len(part), rel=1e-12)


def test_data_order_is_equal_across_optimizers(root, monkeypatch):
    seen = {}
    original = token_windows.train_windows

    def spy(tokens, length, seed, first, count):
        windows = original(tokens, length, seed, first, count)
        seen.setdefault(current, []).append(windows.tobytes())
        return windows

    monkeypatch.setattr(pretrain, "train_windows", spy)
    for current, optimizer in (("adamw", None), ("adam_mini", ADAM_MINI), ("lomo", LOMO)):
        assert job.run_job(root, [make_run(current, optimizer=optimizer)]) == 0
    assert len(seen["adamw"]) == 20 and seen["adamw"] == seen["adam_mini"] == seen["lomo"]


def test_a_nudged_run_has_the_batches_of_its_seed_and_first_weights_a_relative_nudge_beside(root):
    config = make_run()["config"]
    torch.manual_seed(3)
    plain = pretrain.build(config, 3, root, "cpu")
    torch.manual_seed(3)
    nudged = pretrain_nudged.build({**config, "measure": {"nudge": 1e-4}}, 3, root, "cpu")
    after = torch.rand(1)
    torch.manual_seed(3)
    pretrain.build(config, 3, root, "cpu")
    assert torch.equal(torch.rand(1), after)  # nothing more was drawn from the global generator
    assert torch.equal(plain.batch(1)[0], nudged.batch(1)[0])
    pairs = zip(plain.model.parameters(), nudged.model.parameters(), strict=True)
    shifts = torch.cat([((b - a) / a).flatten()[a.flatten() != 0] for a, b in pairs])
    assert shifts.std().item() == pytest.approx(1e-4, rel=0.1) and abs(shifts.mean().item()) < 1e-5


@pytest.mark.parametrize("nudge", [None, 0, -1e-6, 0.5, "small"])
def test_a_nudge_that_is_none_or_large_is_refused(root, nudge):
    config = {**make_run()["config"], "measure": {"nudge": nudge}}
    with pytest.raises(Misuse, match=r"measure.nudge is .*such as 1.0e-6"):
        pretrain_nudged.build(config, 0, root, "cpu")
