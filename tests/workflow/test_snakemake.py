"""The workflow itself: what a target schedules, what mistakes look like, and what a kill leaves behind."""

import re
import shutil
from pathlib import Path

import pytest
from checkout import ROOT, command, edit, snakemake

from lowmem.pipeline import experiments, planning

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]


def scheduled(project: Path, *arguments: str, **settings) -> dict[str, set[str]]:
    """{rule: outputs of its jobs} that a call would make now."""
    text = command(project, "snakemake", "--cores", "2", "--summary", *arguments, **settings).stdout
    jobs: dict[str, set[str]] = {}
    for row in text.splitlines():
        if row.endswith("\tupdate pending"):
            output, _, rule, *_ = row.split("\t")
            jobs.setdefault(rule, set()).add(output)
    return jobs


@pytest.mark.parametrize("tier", experiments.tier_names(ROOT))
def test_a_dry_run_schedules_every_exhibit_every_claim_and_every_run(project, tier):
    jobs = scheduled(project, "--config", f"tier={tier}")
    assert jobs["train"] == {job["done"] for job in planning.jobs(project, tier, {}).values()}
    assert {Path(name).stem for name in jobs["figure"] | jobs["table"]} == set(planning.exhibits(project))
    assert jobs["claims"] == {f"reports/{tier}/claims.md", f"reports/{tier}/claims.json"}
    assert jobs["report"] == {f"reports/{tier}/index.html"}


def graph(text: str) -> tuple[dict[str, str], dict[str, set[str]]]:
    """({node: its label}, {node: nodes it needs}) of `snakemake --dag dot`."""
    labels = dict(re.findall(r'^\s*(\d+)\[label = "([^"]*)"', text, re.MULTILINE))
    needs: dict[str, set[str]] = {node: set() for node in labels}
    for before, after in re.findall(r"^\s*(\d+) -> (\d+)", text, re.MULTILINE):
        needs[after].add(before)
    return labels, needs


def test_an_exhibit_is_a_target_that_schedules_only_its_own_runs(project):
    headers = planning.exhibits(project)
    targets = (*headers, "figures", "tables", "claims")
    text = snakemake(project, "--forceall", "--dag", "dot", *targets, "--config", "tier=smoke").stdout
    labels, needs = graph(text)
    for kind in ("figure", "table"):
        [node] = [node for node, label in labels.items() if label == f"{kind}s"]
        wanted = {rf"{kind}\nid: {name}" for name, header in headers.items() if header["kind"] == kind}
        assert {labels[below] for below in needs[node]} == wanted
    for name, header in headers.items():
        found, left = set(), [node for node, label in labels.items() if label == name]
        assert left
        while left:
            node = left.pop()
            found.add(node)
            left.extend(needs[node] - found)
        rules = [labels[node].split(r"\n", 1) for node in found if labels[node] != name]
        wanted = planning.jobs(project, "smoke", {}, header["experiments"])
        assert {rest[0] for rule, *rest in rules if rule == "train"} == {f"job: {job}" for job in wanted}
        assert [rest for rule, *rest in rules if rule in ("figure", "table")] == [[f"id: {name}"]]
        assert {rest[0] for rule, *rest in rules if rule == "prepare"} == {
            f"prepared: {Path(folder).name}" for folder in planning.datasets(wanted)
        }
        assert {rule for rule, *_ in rules} <= {"fetch", "prepare", "train", "figure", "table"}


def test_a_mistake_in_config_is_one_line_and_no_traceback(project):
    done = snakemake(project, "--dry-run", "--config", "teir=smoke", check=False)
    said = [line for line in done.stderr.splitlines() if "lowmem:" in line]
    assert done.returncode and len(said) == 1 and "unknown key 'teir' (did you mean 'tier'?)" in said[0]
    assert "Traceback" not in done.stderr and "Error in file" not in done.stderr


def test_a_mistake_in_an_experiment_is_one_line_and_no_traceback(project):
    edit(
        project / "workflow/config/experiments/gpt2_sizes.yaml",
        "lr: {chosen: gpt2_rates/43k-adamw, until: 6.0e-3}",
        "lr: -1",
    )
    done = snakemake(project, "--dry-run", check=False)
    assert done.returncode and "optimizer.lr" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
def test_a_pipeline_computes_where_it_stands_whatever_the_shell_names(project, tmp_path, monkeypatch, snakefile):
    other = tmp_path / "other"
    shutil.copytree(project / "workflow", other / "workflow")
    before = sorted(path for path in other.rglob("*"))
    monkeypatch.setattr("checkout.SHELL", {"LOWMEM_ROOT": str(other)})
    target = "results/smoke/quadratic/done.json"
    snakemake(project, "--snakefile", snakefile, target, "--config", "tier=smoke")
    assert (project / target).is_file()
    assert sorted(path for path in other.rglob("*")) == before


def test_an_option_reaches_fetch_prepare_and_train(project):
    asked = ("adam_mini_fig10", "--config", "openwebtext=hub")
    text, jobs = snakemake(project, "--dry-run", "-p", *asked).stdout, scheduled(project, *asked)
    assert jobs["fetch"] == {"data/raw/openwebtext@hub/fetched.json"}
    assert jobs["prepare"] == {"data/prepared/openwebtext@hub-byte/meta.json"}
    assert "train --experiment gpt2_sizes --tier laptop --option openwebtext=hub" in text


def test_plan_prints_the_tier_it_is_asked_for(project):
    text = snakemake(project, "plan", "--config", "tier=paper").stdout
    assert "tier paper:" in text and re.search(r"^gpt2_sizes +24 +24 ", text, re.MULTILINE)


def test_a_finished_target_has_nothing_to_do_until_code_or_settings_change(toy):
    target = ("adam_mini_fig10", "--config", "tier=smoke")
    snakemake(toy, *target)
    again = snakemake(toy, "--dry-run", *target).stdout
    assert "Nothing to be done" in again

    (toy / "src/lowmem/models/gpt2.py").touch()
    (toy / "src/lowmem/models/llama.py").open("a").write("# a comment\n")
    (toy / "src/lowmem/reporting/report.py").open("a").write("# a comment\n")
    assert "Nothing to be done" in snakemake(toy, "--dry-run", *target).stdout

    (toy / "src/lowmem/exhibits/adam_mini_fig10.py").open("a").write("# a comment\n")
    jobs = scheduled(toy, *target)
    assert "figure" in jobs and "train" not in jobs

    experiment = toy / "workflow/config/experiments/gpt2_sizes.yaml"
    edit(experiment, "schedule: {steps: 20,", "schedule: {steps: 21,")  # the schedule's length: another result
    assert "train" in scheduled(toy, *target)


def test_a_failed_download_stops_only_what_needs_it_and_the_report_so_far_says_so(toy):
    shutil.rmtree(toy / "data/raw")
    targets = ("adam_mini_fig10", "lomo_fig1", "--config", "tier=smoke", "fetch_retries=0")
    done = snakemake(toy, *targets, check=False)
    assert done.returncode and "--folder DIR" in done.stderr
    assert {path.stem for path in (toy / "reports/smoke").rglob("*.csv")} == {"lomo_fig1"}
    snakemake(toy, "report_so_far", "--config", "tier=smoke")
    page = (toy / "reports/smoke/so_far/index.html").read_text()
    assert "not run: no record" in page


@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
def test_the_pipeline_runs_from_another_folder_with_either_main_file(project, tmp_path, snakefile):
    start = ("-s", str(project / snakefile), "--config", "tier=smoke")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert {"reports/smoke/index.html"} == scheduled(project, *start, cwd=elsewhere)["report"]
    if snakefile == "Snakefile":  # the same jobs
        command(project, "snakemake", "--cores", "2", "adam_mini_table2", *start, cwd=elsewhere)
        assert (project / "reports/smoke/tables/adam_mini_table2.md").is_file()
        assert [path.name for path in elsewhere.iterdir()] == [".snakemake"]


def test_another_directory_for_results_is_refused_in_one_line(project, tmp_path):
    done = snakemake(project, "--dry-run", "--directory", str(tmp_path / "results"), check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("lowmem: ")]
    assert done.returncode and len(said) == 1 and "leave out --directory" in said[0] and "Traceback" not in done.stderr
