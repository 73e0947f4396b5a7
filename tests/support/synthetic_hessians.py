"""Records of Hessians, quadratics and preconditioners: simple matrices with a known share, small draws of the rest."""

import functools
import json

import numpy as np

from lowmem.pipeline import experiments
from lowmem.pipeline.record import write_arrays
from lowmem.tasks import preconditioner, quadratic


def write(root, experiment, tier, measured):
    """Records of an experiment's runs; measured(run) -> (final, arrays)."""
    from synthetic import record

    for run in experiments.runs(root, experiment, tier):
        final, arrays = measured(run)
        made = write_arrays(root / "results" / tier / run["id"], arrays)
        record(root, run, final, arrays=made)


def hessians(run, share=0.6, high=0.2):
    """As tasks/hessian.py writes them; the share grows a little with the seed."""
    stages, arrays = {}, {}
    settings = run["config"]["measure"]
    for stage in settings["stages"]:
        entry = {"share": share + 0.01 * run["seed"], "null": high - 0.01, "null_low": 0.1, "null_high": high}
        entry |= {"contrast": 3.0, "blocks": 4, "kind": "head", "size": 64, "diagonal": 0.05, "tensors": 1}
        entry["clusters"] = {"agreement": 0.9, "agreement_by_input": 0.0, "null_high": 0.02, "live": 60}
        stages[f"{stage:g}"] = {"step": 1, "loss": 2.0, "modules": {name: dict(entry) for name in settings["modules"]}}
        for name in settings["modules"]:
            arrays[f"{name}@{stage:g}"] = np.kron(np.eye(4), np.ones((8, 8))).astype(np.float32) + 0.01
    return {"parameters": 1, "stages": stages}, arrays


def write_everything(root, tier="laptop"):
    for experiment in ("hessian_transformer", "hessian_deep", "hessian_mlp"):
        write(root, experiment, tier, hessians)
    write(root, "quadratic", tier, lambda run: solved(tuple(run["config"]["measure"]["blocks"]), run["seed"] % 2))
    write(root, "preconditioner", tier, lambda run: conditioned(json.dumps(run["config"]["measure"])))


@functools.cache
def solved(names, seed):
    """A quadratic of the real blocks' shapes with few rates on the grid."""
    blocks = {name: {"log": [1, 1000]} if name == "dense" else {"values": [1, 2, 3]} for name in names}
    settings = {"blocks": blocks, "size": 30, "horizons": [100, 1000], "rates": {"low": -1, "high": 0, "count": 2}}
    made = quadratic.measure({"measure": settings}, seed, None)
    return made["metrics"]["final"], made["arrays"]


@functools.cache
def conditioned(settings):
    """The preconditioner task with few draws and two rows a map."""
    settings = {**json.loads(settings), "draws": 20, "between": 60}
    settings |= {key: settings[key][:2] for key in ("sizes", "kappas") if key in settings}
    made = preconditioner.measure({"measure": settings}, 0, None)
    return made["metrics"]["final"], made.get("arrays")
