"""Which gradients are alive while backward runs: SGD after the whole backward, LOMO inside it (LOMO, Figure 1).

A chain of linear layers is trained for one step. Every gradient that appears and every one that is freed is an event,
read off the tensors themselves: a gradient counts as alive as long as its storage does.
"""

import weakref
from pathlib import Path

import torch
from torch import nn

from lowmem.optim._factory import make
from lowmem.optim.fused_backward import FusedBackward


def measure(config: dict, seed: int, root: Path) -> dict:
    """One step of config["optimizer"] on measure: {layers, width, batch}.

    Returns the curve of events {index, event: gradient | update, parameter, live_gradients, live_gradient_bytes} and
    metrics.final {live_peak (tensors), live_peak_bytes, total_gradient_bytes, largest_gradient_bytes}.
    """
    settings = {"layers": 3, "width": 32, "batch": 4, **config.get("measure", {})}
    torch.manual_seed(seed)
    width = settings["width"]
    model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(settings["layers"])])
    names = {p: f"P{i + 1}" for i, p in enumerate(model.parameters())}
    alive: dict[str, weakref.ref] = {}
    events: list[dict] = []

    def log(event: str, name: str) -> None:
        live = [reference() for reference in alive.values()]
        live = [tensor for tensor in live if tensor is not None]
        size = sum(tensor.numel() * tensor.element_size() for tensor in live)
        row = {"index": len(events), "event": event, "parameter": name}
        events.append({**row, "live_gradients": len(live), "live_gradient_bytes": size})

    def arrived(p: nn.Parameter) -> None:
        alive[names[p]] = weakref.ref(p.grad)
        log("gradient", names[p])

    for p in names:  # before the optimizer's own hooks, so that a gradient is seen before it is used
        p.register_post_accumulate_grad_hook(arrived)
    optimizer = make(model, **config["optimizer"])
    inner = optimizer.inner if isinstance(optimizer, FusedBackward) else optimizer
    _log_updates(inner, lambda p: log("update", names[p]))
    loss = model(torch.randn(settings["batch"], width)).square().mean()
    if isinstance(optimizer, FusedBackward):
        optimizer.backward(loss)
    else:
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    sizes = [p.numel() * p.element_size() for p in names]
    final = {
        "live_peak": max(row["live_gradients"] for row in events),
        "live_peak_bytes": max(row["live_gradient_bytes"] for row in events),
        "total_gradient_bytes": sum(sizes),
        "largest_gradient_bytes": max(sizes),
    }
    return {"metrics": {"final": final}, "curve": events}


def _log_updates(optimizer, log) -> None:
    """Report each parameter as it is updated, one by one, by wrapping this one optimizer's update."""
    update = optimizer.update

    def logged(work: list, factor: float = 1.0) -> None:
        for entry in work:
            update([entry], factor)
            log(entry[1])

    optimizer.update = logged
