"""The training loop: data, determinism, accumulation, divergence, failures, reuse."""

import copy
import json
import math
import subprocess
import sys

import pytest
import tiny
import torch
from tiny import ADAM_MINI, LOMO, curve, differences, environment, make_root, make_run, twin

from lowmem import provenance
from lowmem.errors import Diverged, Misuse
from lowmem.pipeline import experiments, record
from lowmem.tasks import pretrain
from lowmem.training import job, machine


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


def test_training_lowers_the_loss_and_fills_the_record(root):
    run = make_run(steps=60, grad_clip=1.0)
    made = job.train_run(root, run)
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
        job.train_run(root, make_run(variant, optimizer=optimizer, steps=2))
    memory = {name: record.load(root / f"results/smoke/trial/{name}/seed0")["memory"]
              for name in ("adamw", "adam_mini", "lomo")}  # fmt: skip
    assert 0.45 < memory["adam_mini"]["optimizer_state"] / memory["adamw"]["optimizer_state"] < 0.65
    assert memory["lomo"]["gradients"] == 0 and memory["lomo"]["optimizer_state"] < 0.1 * memory["lomo"]["parameters"]


@pytest.mark.parametrize("optimizer", [None, ADAM_MINI, LOMO])
def test_same_seed_twice_is_bitwise_equal_and_another_seed_is_not(root, tmp_path, optimizer):
    other = twin(root, tmp_path)
    run = make_run(optimizer=optimizer, model={"dropout": 0.0 if optimizer else 0.1})
    job.train_run(root, run)
    torch.manual_seed(99)  # what ran before in the process must not matter
    job.train_run(other, run)
    assert differences(root, other, run) == []
    job.train_run(other, {**make_run(seed=1, optimizer=optimizer), "id": run["id"]})
    assert differences(root, other, run) != []


def test_accumulation_equals_one_large_batch(root):
    whole = job.train_run(root, make_run("whole", batch_size=8, grad_clip=1.0, eval_batches=1))
    parts = job.train_run(root, make_run("parts", batch_size=8, micro_batch_size=2, grad_clip=1.0, eval_batches=4))
    rows = [curve(root, {"tier": "smoke", "id": made["id"]}) for made in (whole, parts)]
    for key in ("train_loss", "val_loss", "grad_norm"):
        left, right = ([row[key] for row in each if key in row] for each in rows)
        assert left == pytest.approx(right, rel=2e-4)
    assert parts["metrics"]["final"]["tokens"] == whole["metrics"]["final"]["tokens"]


def test_clipping_bounds_the_update(root):
    sgd = {"name": "sgd", "lr": 1.0}
    free, clipped = (make_run(str(clip), optimizer=sgd, steps=1, grad_clip=clip) for clip in (None, 1e-6))
    for run in (free, clipped):
        job.train_run(root, run)
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
        plain = job.train_run(root, make_run("plain", optimizer=optimizer))
        run = make_run(f"compiled_{name}", optimizer=optimizer, compile=True)
        (tmp_path / "run.json").write_text(json.dumps([run]))
        script = [sys.executable, tiny.__file__, str(root), str(tmp_path / "run.json")]
        subprocess.run(script, env=environment(), check=True)
        compiled = json.loads((record.folder(root, run) / "record.json").read_text())
        assert (plain["status"], compiled["status"]) == ("done", "done"), compiled["reason"]
        assert compiled["device"]["compiled"] is True
        ends = [made["metrics"]["final"]["val_loss"] for made in (plain, compiled)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-3)


def test_without_a_compiler_a_compiled_run_says_so_and_trains_as_an_eager_one(root, monkeypatch, capsys):
    monkeypatch.setattr(machine, "compiler_trouble", lambda device: "no C++ compiler")
    plain, run = job.train_run(root, make_run("plain")), make_run("compiled", compile=True)
    assert job.run_job(root, [run]) == 0
    made = record.load(record.folder(root, run))
    assert "compiled" not in plain["device"] and made["device"]["compiled"] is False
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if "no C++ compiler" in line and "without" in line]
    assert made["metrics"] == plain["metrics"] and made["config_hash"] != plain["config_hash"]


@pytest.mark.slow
def test_what_hinders_the_compiler_is_said_in_one_line():
    script = "from lowmem.training import machine; print(machine.compiler_trouble('cpu'))"
    said = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment(), "CXX": "/nothing/here"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.count("\n") == 1 and "/nothing/here" in said.stdout


def test_bf16_changes_little(root):
    plain = job.train_run(root, make_run("plain"))
    low = job.train_run(root, make_run("low", precision="bf16"))
    assert low["metrics"]["final"]["val_loss"] == pytest.approx(plain["metrics"]["final"]["val_loss"], rel=0.02)


def test_divergence_is_a_result_with_its_step_and_nulls(root):
    run = make_run(optimizer={"name": "sgd", "lr": 1e6}, steps=50)
    run["config"]["schedule"] = {"name": "constant"}
    made = job.train_run(root, run)
    assert made["status"] == "diverged"
    step = made["metrics"]["final"]["step"]
    assert 0 < step < 50 and f"step {step}" in made["reason"]
    assert made["metrics"]["final"]["val_loss"] is None
    assert math.isfinite(made["metrics"]["best"]["val_loss"])
    text = (record.folder(root, run) / "curve.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and curve(root, run)[-1]["step"] == step
    assert job.run_job(root, [run]) == 0  # a diverged run is not a failure


def test_a_failed_run_does_not_stop_the_job_and_exits_1(root, capsys):
    missing = make_run("missing")
    missing["config"]["data"] = {"dataset": "nowhere", "source": "package", "tokenizer": "byte"}
    small = make_run("small", model={"vocab_size": 10})
    good = make_run("good", steps=2)
    assert job.run_job(root, [missing, small, good]) == 1
    *lines, summary = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and summary.startswith("1 runs, ")
    assert "lowmem prepare nowhere" in lines[0] and "vocab_size 10" in lines[1] and "done" in lines[2]
    statuses = [record.load(record.folder(root, run))["status"] for run in (missing, small, good)]
    assert statuses == ["failed", "failed", "done"]


def test_an_unexpected_error_leaves_one_line_and_a_traceback_beside_it(root, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(pretrain, "build", broken)
    made = job.train_run(root, make_run())
    assert made["status"] == "failed" and made["reason"] == "ZeroDivisionError: by zero; see train.log"
    assert "Traceback" in (record.folder(root, make_run()) / "train.log").read_text()


def test_a_gpu_with_too_little_memory_is_a_final_result(root, monkeypatch):
    def hungry(*arguments):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(pretrain, "build", hungry)
    assert job.run_job(root, [make_run()]) == 0
    assert record.reusable(root, make_run())["status"] == "oom"


@pytest.mark.parametrize("error", [MemoryError("too much"), RuntimeError("can't allocate memory: you tried 9 bytes")])
def test_a_machine_that_is_short_of_memory_fails_and_the_next_call_tries_again(root, monkeypatch, error):
    def hungry(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "build", hungry)
        assert job.run_job(root, [make_run()]) == 1
    made = record.load(record.folder(root, make_run()))
    assert made["status"] == "failed" and "too little memory left" in made["reason"]
    assert record.reusable(root, make_run()) is None
    assert job.run_job(root, [make_run()]) == 0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"micro_batch_size": 3}, "multiple of micro_batch_size"),
        ({"seq_len": 64}, "block_size"),
        ({"eval_batches": 1000}, "lower train.eval_batches"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(root, change, words):
    made = job.train_run(root, make_run(**change))
    assert made["status"] == "failed" and words in made["reason"] and "\n" not in made["reason"]


@pytest.mark.parametrize(
    "change, words", [({"micro_batch_size": 2}, "accumulate"), ({"grad_clip": 1.0}, "clips by itself")]
)
def test_what_an_optimizer_inside_backward_cannot_do_is_refused(root, change, words):
    assert words in job.train_run(root, make_run(optimizer=LOMO, **change))["reason"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_that_asks_for_a_gpu_is_refused_before_anything_runs(root):
    run = make_run()
    run["resources"]["gpus"] = 1
    with pytest.raises(Misuse, match="asks for a GPU"):
        job.run_job(root, [make_run("other"), run])
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
    made = job.train_run(root, run)
    assert made["status"] == "done" and made["metrics"]["final"] == {"x": 7, "y": None}
    assert curve(root, run) == [{"step": 0, "x": 1.5}]


def test_a_measurement_that_diverges_is_a_result(root, monkeypatch):
    class Module:
        @staticmethod
        def measure(config, seed, root):
            raise Diverged("loss is not finite at step 3")

    monkeypatch.setitem(sys.modules, "lowmem.tasks.fake", Module)
    made = job.train_run(root, {**make_run(seed=7), "config": {"task": "fake"}})
    assert (made["status"], made["reason"]) == ("diverged", "loss is not finite at step 3")


def test_a_record_is_reused_until_configuration_code_or_data_change(root, monkeypatch):
    run = make_run(steps=2)
    job.train_run(root, run)
    path = record.folder(root, run) / "record.json"
    before = path.read_text()
    assert record.reusable(root, run) is not None
    job.run_job(root, [run])
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
        "import json, sys; from pathlib import Path; from lowmem import provenance; from lowmem.training import job\n"
        "root, run = Path(sys.argv[1]), json.loads(sys.argv[2]); before = set(sys.modules)\n"
        "made = job.train_run(root, run); assert made['status'] == 'done', made['reason']\n"
        "own = [Path(m.__file__).resolve() for n, m in sys.modules.items() if n.startswith('lowmem') and m.__file__]\n"
        "print(json.dumps([str('src' / p.relative_to(provenance.PACKAGE.resolve().parent)) for p in own]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), json.dumps(run)], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    files = record.load(record.folder(root, run))["code"]["files"]
    routing = {provenance.name_of(provenance.file_of(module)) for module in provenance.ROUTING}
    routing |= {
        f"src/lowmem/{name}.py"
        for name in (
            "data/fetch",
            "data/archives",
            "data/limits",
            "data/tokenizers",
            "pipeline/grids",
            "pipeline/model_settings",
            "pipeline/rates",
            "provenance/syntax",
            "__init__",
        )
    }
    packages = provenance.PACKAGE.rglob("__init__.py")
    routing |= {provenance.name_of(path) for path in packages if not provenance.definitions(path)}
    loaded = {name for name in json.loads(done.stdout) if not name.startswith("src/lowmem/data/sources/")}
    assert loaded - routing <= set(files)
    assert "src/lowmem/optim/adam_mini.py" in files and "src/lowmem/optim/lomo.py" not in files
