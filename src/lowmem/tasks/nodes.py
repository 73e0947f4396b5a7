"""Classify the nodes of one graph; every step sees the whole graph and the labels of its training nodes."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem import models
from lowmem.data import graphs, prepare
from lowmem.errors import Misuse
from lowmem.models.gnn import make_graph
from lowmem.training.task import Task


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """Task from config keys data, model and train; a step is an epoch, so train.batch_size is 1.

    Features are divided by their sum per node where they are counts (0 or more), as Planetoid's users do. Nodes without
    an edge stay in: their loop gives them their own features. The record says how many there are.
    """
    if "data" not in config or "model" not in config or config["train"]["batch_size"] != 1:
        raise Misuse("task nodes needs data and model in its configuration, and train.batch_size 1 (the graph)")
    folder = prepare.ready(root, config["data"])
    arrays = prepare.load_arrays(folder)
    graphs.check(arrays, folder)
    features = torch.from_numpy(arrays["features"].astype("float32"))
    if features.min() >= 0:
        features = features / features.sum(1, keepdim=True).clamp(min=1)
    graph = make_graph(features.to(device), torch.from_numpy(arrays["edges"].copy()).to(device))
    targets = torch.from_numpy(arrays["labels"].copy()).to(device)
    parts = {name: torch.from_numpy(arrays[name].copy()).to(device) for name in graphs.PARTS}
    with torch.device(device):
        model = models.build(config["model"], n_input=features.shape[1], n_output=int(targets.max()) + 1)

    def loss(model: torch.nn.Module, graph) -> Tensor:
        return F.cross_entropy(model(graph)[parts["train"]], targets[parts["train"]])

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        logits = model(graph)
        right = (logits.argmax(1) == targets).float()
        found = {f"{name}_accuracy": right[parts[name]].mean().item() for name in ("val", "test")}
        return {"val_loss": F.cross_entropy(logits[parts["val"]], targets[parts["val"]]).item(), **found}

    def finish(model: torch.nn.Module) -> tuple[dict, dict]:
        return {"isolated_nodes": graphs.isolated(arrays["edges"], len(targets))}, {}

    inputs = tuple(folder / f"{name}.npy" for name in ("features", "edges", "labels", *graphs.PARTS))
    return Task(model, lambda index: graph, loss, evaluate, units=1, unit="epoch", inputs=inputs, finish=finish)
