"""A newcomer's afternoon: an optimizer, a model, a task, a dataset, an experiment, an exhibit and a claim, a file each.

Nothing else is touched but sources.yaml, which gets an entry; the pipeline finds the rest by file names.
"""

import json
import re
import shutil

import checkout
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FILES = {
    "src/lowmem/optim/sign_descent.py": '''"""Sign descent: w -= lr * sign(g), with decoupled decay."""

from lowmem.optim.core.rule import Stage, axpy, shrink
from lowmem.optim.core.rule_optimizer import RuleOptimizer


def update(w, totals):
    shrink(w.param, 1 - w.hyper["lr"] * w.hyper["weight_decay"])
    axpy(w.param, w.grad.sign(), -w.hyper["lr"])


class SignDescent(RuleOptimizer):
    """Sign descent. State: none.

    lr: size of every step. weight_decay: weights lose lr * weight_decay of themselves at each step.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, model, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    stages = (Stage(update),)

    def __init__(self, params, lr=1e-2, weight_decay=0.0, **common):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay), **common)
''',
    "src/lowmem/models/line.py": '''"""y = a x + b."""

from dataclasses import dataclass

from torch import nn


@dataclass
class Config:
    n_input: int = 1


def build(**settings) -> nn.Linear:
    return nn.Linear(Config(**settings).n_input, 1)
''',
    "data/points/prepare.py": '''"""One file of points."""

from lowmem.data import archives


def files(raw):
    with archives.opened(raw, "*/points.csv") as stream:
        yield "points.csv", stream
''',
    "src/lowmem/tasks/fit_points.py": '''"""Fit points by least squares."""

import torch

from lowmem import models
from lowmem.data import prepare
from lowmem.training.task import Task


def build(config, seed, root, device):
    path = prepare.folder(root, config["data"]) / "points.csv"
    rows = torch.tensor([[float(cell) for cell in line.split(",")] for line in path.read_text().split()])
    model = models.build(config["model"])

    def loss(model, batch):
        return (model(batch[:, :1]) - batch[:, 1:]).square().mean()

    def evaluate(model):
        return {"val_loss": loss(model, rows).item()}

    return Task(model, lambda index: rows, loss, evaluate, units=len(rows), unit="point", inputs=(path,))
''',
    "workflow/config/experiments/points.yaml": """title: Points on a line
source: ours
settings:
  task: fit_points
  data: {dataset: points, source: folder}
  model: {name: line}
  optimizer: {lr: 1.0e-2}
  train: {steps: 400, batch_size: 1, eval_every: 100}
axes:
  optimizer:
    sign_descent: {optimizer: {name: sign_descent}}
    sgd: {optimizer: {name: sgd}}
seeds: [0, 1, 2]
""",
    "src/lowmem/exhibits/extra_points.py": '''"""How well each optimizer fits points on a line."""

from lowmem.reporting.values import text
from lowmem.reporting.numbers.losses import mean
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.runs import by_axis

EXHIBIT = {
    "id": "extra_points", "paper": "extra", "label": "Extra", "order": 99, "kind": "table", "title": "Points on a line",
    "experiments": ["points"], "published": None,
}


def render(runs, published, tier):
    found = {name: mean(group) for name, group in by_axis(runs, "optimizer").items()}
    rows = [[name, text(value, digits=4)] for name, value in found.items()]
    values = {f"{name}.loss": value for name, value in found.items()}
    return ExhibitResult("Mean squared error after 400 steps.", ["optimizer", "error"], rows, values)
''',
}
TWIN = '''"""Sign descent, coordinate by coordinate."""

import numpy as np


class SignDescent:
    def __init__(self, lr, weight_decay):
        self.lr, self.weight_decay = lr, weight_decay

    def step(self, w, g):
        new = w.copy()
        for i in np.ndindex(*w.shape):
            new[i] = w[i] - self.lr * (self.weight_decay * w[i] + np.sign(g[i]))
        return new
'''
CLAIM = {
    "id": "sign_descent_fits", "paper": "extra", "place": "ours", "statement": "Sign descent fits the line.",
    "exhibit": "extra_points", "value": "sign_descent.loss",
    "published": {"value": "no number", "unit": "ours", "source": "ours", "confidence": "high"},
    "rule": {"kind": "less", "target": 0.01}, "decides": ["laptop"], "entered": "before", "reason": "The step is 0.01.",
}  # fmt: skip


@pytest.fixture
def extended(project):
    for path in (project / "src/lowmem/exhibits").glob("[a-z]*.py"):
        path.unlink()  # the others' runs take minutes
    for name, text in FILES.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    for path in (project / "workflow/config/claims").glob("*.yaml"):
        path.unlink()  # those of the others
    (project / "workflow/config/claims/points.yaml").write_text(yaml.safe_dump({"claims": [CLAIM]}))
    sources = project / "data/sources.yaml"
    sources.write_text(sources.read_text() + "\npoints:\n  about: points\n  licence: none\n  sources: []\n")
    (project / "mine").mkdir()
    (project / "mine/points.csv").write_text("".join(f"{x / 10},{x / 5 + 1}\n" for x in range(-10, 11)))
    checkout.command(project, "lowmem", "fetch", "points", "--source", "folder", "--folder", "mine")
    return project


def test_one_file_each_is_enough_for_a_verdict(extended):
    checkout.snakemake(extended)
    [row] = json.loads((extended / "reports/laptop/claims.json").read_text())
    assert row["verdict"] == "reproduced" and 0 < row["ours"] < 0.01
    page = (extended / "reports/laptop/index.html").read_text()
    assert "Points on a line" in page and "Sign descent fits the line." in page
    records = [json.loads(path.read_text()) for path in (extended / "results/laptop/points").rglob("record.json")]
    assert len(records) == 6
    for made in records:
        files = made["code"]["files"]
        assert {"src/lowmem/tasks/fit_points.py", "src/lowmem/models/line.py"} <= files.keys()
        own = made["config"]["optimizer"]["name"]
        assert f"src/lowmem/optim/{own}.py" in files


def test_the_new_optimizer_is_imported_drawn_and_tested_without_being_registered(extended):
    shutil.copytree(checkout.ROOT / "tests", extended / "tests", ignore=checkout.IGNORED)
    shutil.copy(checkout.ROOT / "pyproject.toml", extended)
    (extended / "tests/support/twin_sign_descent.py").write_text(TWIN)
    code = "from lowmem.optim import SignDescent; from lowmem.reporting import display, plots; "
    code += "print(display.name('sign_descent'), plots.look('sign_descent')['color'] in plots.SPARE)"
    (extended / "shown.py").write_text(code)
    assert checkout.command(extended, "shown").stdout.strip() == "Sign descent True"
    chosen = ["tests/optim/test_twins.py", "tests/optim/test_contract.py", "-k", "sign_descent"]
    done = checkout.command(extended, "pytest", "-n", "0", "-o", "addopts=-m 'not slow'", *chosen)
    last = done.stdout.splitlines()[-1]
    passed = int(re.search(r"(\d+) passed", last)[1])
    assert passed > 20 and "failed" not in last and "skipped" not in last


def test_a_wrong_value_of_the_new_model_is_refused_before_anything_runs(extended):
    checkout.edit(extended / "workflow/config/experiments/points.yaml", "{name: line}", "{name: line, n_input: two}")
    done = checkout.snakemake(extended, "--dry-run", check=False)
    assert done.returncode and "model.n_input: 'two' is not a whole number of 1 or more" in done.stderr
