"""Bytes that an optimizer's state really takes: how much more the allocator holds after training steps than before.

Model and batch are allocated before, gradients are freed after. Nothing is computed from shapes: on a CPU the bytes are those
of the allocator's own events, as torch.profiler records them, on a GPU torch.cuda's.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from lowmem.memory import target_model
from lowmem.optim._factory import make
from lowmem.optim.core.fused_backward import FusedBackward
from lowmem.tasks.state_memory import second_moment_scalars
from lowmem.training import machine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(config: dict, seed: int, root: Path) -> dict:
    """measure: {seq_len, weights: fp32 | bf16, device: cpu | cuda}: config["optimizer"] does two steps on random tokens.

    metrics.final: {state_bytes (of the allocator; step counters too), counted_bytes (of the state's tensors, without
    them), parameters, second_moment_scalars}.
    """
    settings = {"seq_len": 16, "weights": "fp32", **config["measure"]}
    device = machine.measuring_device(settings)
    torch.manual_seed(seed)
    target = target_model.find(config["model"])
    model = target.make().to(device, DTYPES[settings["weights"]])
    tokens = torch.randint(target.vocab_size, (1, settings["seq_len"]), device=device)
    target.loss(model, tokens).backward()  # what a first pass leaves behind is not the optimizer's
    model.zero_grad()

    def train() -> torch.optim.Optimizer:
        optimizer = make(model, **config["optimizer"])
        for _ in range(2):
            loss = target.loss(model, tokens)
            optimizer.backward(loss) if isinstance(optimizer, FusedBackward) else loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return optimizer

    kept, optimizer = kept_bytes(train, device)
    final = {
        "state_bytes": kept,
        "counted_bytes": optimizer.state_bytes(),
        "parameters": target.parameters(),
        "second_moment_scalars": second_moment_scalars(getattr(optimizer, "inner", optimizer)),
    }
    return {"metrics": {"final": final}, "memory": {"optimizer_state": kept}}


def kept_bytes(work: Callable, device: str) -> tuple[int, object]:
    """(growth of the allocated bytes over some work, the result of that work, which is kept alive)."""
    if device == "cuda":
        before, made = torch.cuda.memory_allocated(), work()
        return torch.cuda.memory_allocated() - before, made
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        made = work()
    events = profiler.profiler.kineto_results.events()
    return sum(e.nbytes() for e in events if e.name() == "[memory]"), made
