"""The training loop: data, determinism, accumulation, divergence, failures, reuse."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ADAM_MINI, LOMO, curve, differences, environment, make_root, make_run, twin

from lowmem import experiments, machine, provenance, record, train
from lowmem.errors import Diverged, Misuse
from lowmem.tasks import pretrain


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
    whole = pretrain.train_windows(tokens, 8, seed=1, first=6, count=6)
    parts = [pretrain.train_windows(tokens, 8, seed=1, first=first, count=2) for first in (6, 8, 10)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert len({int(row[0]) for row in whole}) > 3


def test_windows_cover_the_file_evenly():
    tokens = np.arange(108, dtype=np.uint16)
    starts = pretrain.train_windows(tokens, 8, seed=0, first=0, count=20000)[:, 0]
    counts = np.bincount(starts, minlength=100)
    assert len(counts) == 100 and counts.min() > 140 and counts.max() < 260


def test_targets_are_the_next_tokens_and_validation_windows_do_not_overlap(root):
    tokens, targets = pretrain.build(make_run()["config"], 0, root, "cpu").batch(0)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    windows = pretrain.val_windows(np.arange(100), 8, 5, Path("x"))
    assert np.array_equal(windows[:, 1:].ravel(), np.arange(1, 41))


def test_named_starts_are_measured_at_the_end_and_enter_the_record(root):
    evaluated = [0, 16, 32, 48, 64, 80, 96, 112]  # the evaluation's own eight windows
    (root / "starts.yaml").write_text(f"starts: {evaluated}\n")
    run = make_run()
    run["config"]["measure"] = {"starts": "starts.yaml"}
    made = train.train_run(root, run)
    assert made["metrics"]["final"]["starts_loss"] == pytest.approx(made["metrics"]["final"]["val_loss"], rel=1e-6)
    assert "starts.yaml" in made["code"]["files"]
    (root / "starts.yaml").write_text("starts: [3, 500, 900]\n")
    again = train.train_run(root, run)
    assert again["metrics"]["final"]["starts_loss"] != made["metrics"]["final"]["starts_loss"]


@pytest.mark.parametrize(
    "measure, said",
    [
        ({"starts": "none.yaml"}, "none.yaml is not there"),
        ({"starts": "far.yaml"}, "starts 1 to 984; the validation text holds 0 to 983"),
        ({"starts": "empty.yaml"}, "no list under `starts`"),
        ({"start": "far.yaml"}, "knows measure.starts and measure.held_out; got ['start']"),
        ({"held_out": "half"}, "'half'; write whole, or leave it out"),
    ],
)
def test_starts_that_do_not_fit_are_refused(root, measure, said):
    (root / "empty.yaml").write_text("places: [1]\n")
    (root / "far.yaml").write_text("starts: [1, 984]\n")  # 1,000 tokens, windows of 16 and the token after
    run = make_run()
    run["config"]["measure"] = measure
    made = train.train_run(root, run)
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
    made = train.train_run(root, run)
    kept = record.read_arrays(record.folder(root, run), made)["val_window_losses"]
    assert kept.shape == (62,) and kept.dtype == np.float16
    assert made["metrics"]["final"]["val_loss"] == pytest.approx(curve(root, run)[-1]["val_loss"], rel=1e-12)
    assert made["metrics"]["final"]["val_loss"] == pytest.approx(float(kept.astype(np.float64).mean()), abs=1e-3)


def test_a_line_of_the_curve_is_the_mean_of_its_steps(root):
    every, third = make_run("a", steps=20, eval_every=10), make_run("b", steps=20, eval_every=10, log_every=3)
    for run in (every, third):
        train.train_run(root, run)
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
    original = pretrain.train_windows

    def spy(tokens, length, seed, first, count):
        windows = original(tokens, length, seed, first, count)
        seen.setdefault(current, []).append(windows.tobytes())
        return windows

    monkeypatch.setattr(pretrain, "train_windows", spy)
    for current, optimizer in (("adamw", None), ("adam_mini", ADAM_MINI), ("lomo", LOMO)):
        assert train.run_job(root, [make_run(current, optimizer=optimizer)]) == 0
    assert len(seen["adamw"]) == 20 and seen["adamw"] == seen["adam_mini"] == seen["lomo"]


def test_training_lowers_the_loss_and_fills_the_record(root):
    run = make_run(steps=60, grad_clip=1.0)
    made = train.train_run(root, run)
    assert made == json.loads((record.folder(root, run) / "record.json").read_text())
    assert made["status"] == "done" and made["config_hash"] == run["config_hash"] and made["world_size"] == 1
    final, rows = made["metrics"]["final"], curve(root, run)
    assert final["val_loss"] < rows[0]["val_loss"] - 1.0
    assert final["step"] == 60 and final["tokens"] == 60 * 4 * 16
    assert made["metrics"]["best"]["val_loss"] == min(row["val_loss"] for row in rows if "val_loss" in row)
    assert [row["step"] for row in rows] == list(range(61))
    assert [row["step"] for row in rows if "val_loss" in row] == list(range(0, 61, 5))
    assert rows[3]["lr"] == pytest.approx(0.01) and rows[60]["lr"] == pytest.approx(0.001)
    parameters = sum(p.numel() for p in pretrain.build(run["config"], 0, root, "cpu").model.parameters())
    memory = made["memory"]
    assert memory["parameters"] == memory["gradients"] == 4 * parameters
    assert memory["optimizer_state"] >= 8 * parameters and memory["peak_rss"] > 1e7
    assert made["throughput"]["tokens_per_s"] > 0
    assert made["throughput"]["step_ms"]["p10"] <= made["throughput"]["step_ms"]["median"]
    assert made["device"]["type"] == "cpu" and made["device"]["threads"] == 1
    assert made["code"]["commit"] is None and made["code"]["dirty"] is None  # no git in a temporary folder
    assert not list(record.folder(root, run).glob("checkpoint-*"))


def test_adam_mini_keeps_about_half_the_state_and_lomo_keeps_no_gradients(root):
    for variant, optimizer in (("adamw", None), ("adam_mini", ADAM_MINI), ("lomo", LOMO)):
        train.train_run(root, make_run(variant, optimizer=optimizer, steps=2))
    memory = {name: record.load(root / f"results/smoke/trial/{name}/seed0")["memory"]
              for name in ("adamw", "adam_mini", "lomo")}  # fmt: skip
    assert 0.45 < memory["adam_mini"]["optimizer_state"] / memory["adamw"]["optimizer_state"] < 0.65
    assert memory["lomo"]["gradients"] == 0 and memory["lomo"]["optimizer_state"] < 0.1 * memory["lomo"]["parameters"]


@pytest.mark.parametrize("optimizer", [None, ADAM_MINI, LOMO])
def test_same_seed_twice_is_bitwise_equal_and_another_seed_is_not(root, tmp_path, optimizer):
    other = twin(root, tmp_path)
    run = make_run(optimizer=optimizer, model={"dropout": 0.0 if optimizer else 0.1})
    train.train_run(root, run)
    torch.manual_seed(99)  # what ran before in the process must not matter
    train.train_run(other, run)
    assert differences(root, other, run) == []
    train.train_run(other, {**make_run(seed=1, optimizer=optimizer), "id": run["id"]})
    assert differences(root, other, run) != []


def test_accumulation_equals_one_large_batch(root):
    whole = train.train_run(root, make_run("whole", batch_size=8, grad_clip=1.0, eval_batches=1))
    parts = train.train_run(root, make_run("parts", batch_size=8, micro_batch_size=2, grad_clip=1.0, eval_batches=4))
    rows = [curve(root, {"tier": "smoke", "id": made["id"]}) for made in (whole, parts)]
    for key in ("train_loss", "val_loss", "grad_norm"):
        left, right = ([row[key] for row in each if key in row] for each in rows)
        assert left == pytest.approx(right, rel=2e-4)
    assert parts["metrics"]["final"]["tokens"] == whole["metrics"]["final"]["tokens"]


def test_clipping_bounds_the_update(root):
    sgd = {"name": "sgd", "lr": 1.0}
    free, clipped = (make_run(str(clip), optimizer=sgd, steps=1, grad_clip=clip) for clip in (None, 1e-6))
    for run in (free, clipped):
        train.train_run(root, run)
    rows = [curve(root, run) for run in (free, clipped)]
    assert rows[0][1]["grad_norm"] == rows[1][1]["grad_norm"] > 0  # the norm before clipping is written
    assert (
        abs(rows[1][1]["val_loss"] - rows[1][0]["val_loss"])
        < 1e-4
        < abs(rows[0][1]["val_loss"] - rows[0][0]["val_loss"])
    )


@pytest.mark.slow
def test_compilation_changes_little(root, tmp_path):
    """In a process of its own: setuptools, which compiling imports, refuses to where a test imported distutils before."""
    for name, optimizer in (("adam_mini", ADAM_MINI), ("lomo", LOMO)):
        plain = train.train_run(root, make_run("plain", optimizer=optimizer))
        run = make_run(f"compiled_{name}", optimizer=optimizer, compile=True)
        (tmp_path / "run.json").write_text(json.dumps([run]))
        script = [sys.executable, str(Path(__file__).with_name("tiny.py")), str(root), str(tmp_path / "run.json")]
        subprocess.run(script, env=environment(), check=True)
        compiled = json.loads((record.folder(root, run) / "record.json").read_text())
        assert (plain["status"], compiled["status"]) == ("done", "done"), compiled["reason"]
        assert compiled["device"]["compiled"] is True
        ends = [made["metrics"]["final"]["val_loss"] for made in (plain, compiled)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-3)


def test_without_a_compiler_a_compiled_run_says_so_and_trains_as_an_eager_one(root, monkeypatch, capsys):
    monkeypatch.setattr(machine, "compiler_trouble", lambda device: "no C++ compiler")
    plain, run = train.train_run(root, make_run("plain")), make_run("compiled", compile=True)
    assert train.run_job(root, [run]) == 0
    made = record.load(record.folder(root, run))
    assert "compiled" not in plain["device"] and made["device"]["compiled"] is False
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if "no C++ compiler" in line and "without" in line]
    assert made["metrics"] == plain["metrics"] and made["config_hash"] != plain["config_hash"]


@pytest.mark.slow
def test_what_hinders_the_compiler_is_said_in_one_line():
    script = "from lowmem import machine; print(machine.compiler_trouble('cpu'))"
    said = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment(), "CXX": "/nothing/here"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.count("\n") == 1 and "/nothing/here" in said.stdout


def test_bf16_changes_little(root):
    plain = train.train_run(root, make_run("plain"))
    low = train.train_run(root, make_run("low", precision="bf16"))
    assert low["metrics"]["final"]["val_loss"] == pytest.approx(plain["metrics"]["final"]["val_loss"], rel=0.02)


def test_divergence_is_a_result_with_its_step_and_nulls(root):
    run = make_run(optimizer={"name": "sgd", "lr": 1e6}, steps=50)
    run["config"]["schedule"] = {"name": "constant"}
    made = train.train_run(root, run)
    assert made["status"] == "diverged"
    step = made["metrics"]["final"]["step"]
    assert 0 < step < 50 and f"step {step}" in made["reason"]
    assert made["metrics"]["final"]["val_loss"] is None
    assert math.isfinite(made["metrics"]["best"]["val_loss"])
    text = (record.folder(root, run) / "curve.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and curve(root, run)[-1]["step"] == step
    assert train.run_job(root, [run]) == 0  # a diverged run is not a failure


def test_a_failed_run_does_not_stop_the_job_and_exits_1(root, capsys):
    missing = make_run("missing")
    missing["config"]["data"] = {"dataset": "nowhere", "source": "package", "tokenizer": "byte"}
    small = make_run("small", model={"vocab_size": 10})
    good = make_run("good", steps=2)
    assert train.run_job(root, [missing, small, good]) == 1
    *lines, summary = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and summary.startswith("1 runs, ")
    assert "lowmem prepare nowhere" in lines[0] and "vocab_size 10" in lines[1] and "done" in lines[2]
    statuses = [record.load(record.folder(root, run))["status"] for run in (missing, small, good)]
    assert statuses == ["failed", "failed", "done"]


def test_an_unexpected_error_leaves_one_line_and_a_traceback_beside_it(root, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(pretrain, "build", broken)
    made = train.train_run(root, make_run())
    assert made["status"] == "failed" and made["reason"] == "ZeroDivisionError: by zero; see train.log"
    assert "Traceback" in (record.folder(root, make_run()) / "train.log").read_text()


def test_a_gpu_with_too_little_memory_is_a_final_result(root, monkeypatch):
    def hungry(*arguments):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(pretrain, "build", hungry)
    assert train.run_job(root, [make_run()]) == 0
    assert record.reusable(root, make_run())["status"] == "oom"


@pytest.mark.parametrize("error", [MemoryError("too much"), RuntimeError("can't allocate memory: you tried 9 bytes")])
def test_a_machine_that_is_short_of_memory_fails_and_the_next_call_tries_again(root, monkeypatch, error):
    def hungry(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "build", hungry)
        assert train.run_job(root, [make_run()]) == 1
    made = record.load(record.folder(root, make_run()))
    assert made["status"] == "failed" and "too little memory left" in made["reason"]
    assert record.reusable(root, make_run()) is None
    assert train.run_job(root, [make_run()]) == 0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"micro_batch_size": 3}, "multiple of micro_batch_size"),
        ({"seq_len": 64}, "block_size"),
        ({"eval_batches": 1000}, "lower train.eval_batches"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(root, change, words):
    made = train.train_run(root, make_run(**change))
    assert made["status"] == "failed" and words in made["reason"] and "\n" not in made["reason"]


@pytest.mark.parametrize(
    "change, words", [({"micro_batch_size": 2}, "accumulate"), ({"grad_clip": 1.0}, "clips by itself")]
)
def test_what_an_optimizer_inside_backward_cannot_do_is_refused(root, change, words):
    assert words in train.train_run(root, make_run(optimizer=LOMO, **change))["reason"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_that_asks_for_a_gpu_is_refused_before_anything_runs(root):
    run = make_run()
    run["resources"]["gpus"] = 1
    with pytest.raises(Misuse, match="asks for a GPU"):
        train.run_job(root, [make_run("other"), run])
    assert not (root / "results").exists()


def test_a_measuring_task_needs_no_training_loop(root, monkeypatch):
    class Module:
        @staticmethod
        def measure(config, seed, root):
            return {
                "metrics": {"final": {"x": seed, "y": float("nan")}},
                "memory": None,
                "curve": [{"step": 0, "x": 1.5}],
            }

    run = {**make_run(seed=7), "config": {"task": "fake"}}
    monkeypatch.setitem(sys.modules, "lowmem.tasks.fake", Module)
    made = train.train_run(root, run)
    assert made["status"] == "done" and made["metrics"]["final"] == {"x": 7, "y": None}
    assert curve(root, run) == [{"step": 0, "x": 1.5}]


def test_a_measurement_that_diverges_is_a_result(root, monkeypatch):
    class Module:
        @staticmethod
        def measure(config, seed, root):
            raise Diverged("loss is not finite at step 3")

    monkeypatch.setitem(sys.modules, "lowmem.tasks.fake", Module)
    made = train.train_run(root, {**make_run(seed=7), "config": {"task": "fake"}})
    assert (made["status"], made["reason"]) == ("diverged", "loss is not finite at step 3")


def test_a_record_is_reused_until_configuration_code_or_data_change(root, monkeypatch):
    run = make_run(steps=2)
    train.train_run(root, run)
    path = record.folder(root, run) / "record.json"
    before = path.read_text()
    assert record.reusable(root, run) is not None
    train.run_job(root, [run])
    assert path.read_text() == before  # not run again

    changed = copy.deepcopy(run)
    changed["config"]["optimizer"]["lr"] = 0.02
    changed["config_hash"] = experiments.config_hash({**changed["config"], "seed": 0})
    assert record.reusable(root, changed) is None

    data = root / "data/prepared/tiny-byte/val.bin"
    whole = data.read_bytes()
    data.write_bytes(bytes(len(whole)))
    assert record.reusable(root, run) is None
    data.write_bytes(whole)

    real = provenance.code_hash
    monkeypatch.setattr(provenance, "code_hash", lambda path: "tree:0" if path.name == "gpt2.py" else real(path))
    assert record.reusable(root, run) is None
    monkeypatch.setattr(provenance, "code_hash", lambda path: "tree:0" if path.name == "lomo.py" else real(path))
    assert record.reusable(root, run) is not None  # an optimizer that this run does not use
    monkeypatch.undo()

    path.write_text(before[:-30])  # damaged
    assert record.reusable(root, run) is None
    path.write_text(before.replace('"done"', '"failed"'))
    assert record.reusable(root, run) is None


def test_recorded_code_holds_every_module_that_decides_the_result(root):
    """In a fresh process: what was imported is in code.files, except modules that only route."""
    run = make_run(steps=1, optimizer=ADAM_MINI)
    script = (
        "import json, sys; from pathlib import Path; from lowmem import train, record, provenance\n"
        "root, run = Path(sys.argv[1]), json.loads(sys.argv[2]); before = set(sys.modules)\n"
        "made = train.train_run(root, run); assert made['status'] == 'done', made['reason']\n"
        "own = [Path(m.__file__).resolve() for n, m in sys.modules.items() if n.startswith('lowmem') and m.__file__]\n"
        "print(json.dumps([str('src' / p.relative_to(provenance.PACKAGE.resolve().parent)) for p in own]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), json.dumps(run)], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    files = record.load(record.folder(root, run))["code"]["files"]
    routing = {provenance.name_of(provenance.file_of(provenance.current(module))) for module in provenance.ROUTING}
    routing |= {
        f"src/lowmem/{name}.py"
        for name in ("fetch", "archives", "tokenizers", "syntax", "model_settings", "rates", "__init__")
    }
    routing |= {"src/lowmem/tasks/__init__.py", "src/lowmem/models/__init__.py"}
    loaded = {name for name in json.loads(done.stdout) if not name.startswith("src/lowmem/sources/")}
    assert loaded - routing <= set(files)
    assert "src/lowmem/optim/adam_mini.py" in files and "src/lowmem/optim/lomo.py" not in files
