"""Bytes an optimizer keeps for a model, counted on the meta device: nothing is trained and no memory is used.

The real model is built, the real optimizer takes one step on gradients without data, and its state tensors are counted.
Adam-mini Table 1 counts both moments in fp32; LOMO Table 1 counts 16-bit weights with fp32 moments and master weights.
"""

from pathlib import Path

import torch

from lowmem import models
from lowmem.errors import Misuse
from lowmem.optim._factory import make
from lowmem.optim.core.fused_backward import FusedBackward

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def measure(config: dict, seed: int, root: Path) -> dict:
    """Count parameters and state of config["optimizer"] on config["model"].

    measure: {param_dtype: fp32 | bf16 | fp16, state_dtype: fp32 (default) or the like, master: whether an fp32 copy of
    the weights is kept}. Returns metrics.final in elements and bytes:

    parameters, param_bytes, grad_bytes (all gradients at once), live_grad_bytes (what the optimizer's way of running
    keeps alive: all, or the largest when it runs inside backward), moment1_bytes, moment2_bytes, state_bytes (their sum
    and the master copy), master_bytes, second_moment_scalars, largest_param_bytes.
    """
    settings = {"param_dtype": "fp32", "state_dtype": "fp32", "master": False, **config.get("measure", {})}
    for key in ("param_dtype", "state_dtype"):
        if settings[key] not in BYTES:
            raise Misuse(f"measure.{key}: {settings[key]!r} is none of {', '.join(BYTES)}")
    with torch.device("meta"):
        model = models.build(config["model"])
    model = model.to(getattr(torch, _torch_name(settings["state_dtype"])))  # moments take the parameter's dtype
    optimizer = make(model, **config["optimizer"])
    inner = optimizer.inner if isinstance(optimizer, FusedBackward) else optimizer
    work = [(group, p, torch.empty_like(p)) for group in inner.param_groups for p in group["params"] if p.requires_grad]
    with torch.no_grad():
        inner.update(work)
    bytes_of = {"exp_avg": 0, "exp_avg_sq": 0, "other": 0}
    for state in inner.state.values():
        for key, tensor in state.items():
            if key != "step":
                place = key if key in bytes_of else "other"
                bytes_of[place] += tensor.numel() * tensor.element_size()
    trainable = [p for p in model.parameters() if p.requires_grad]
    width = BYTES[settings["param_dtype"]]
    parameters = sum(p.numel() for p in trainable)
    largest = max(p.numel() for p in trainable)
    master = 4 * parameters if settings["master"] else 0
    fused = isinstance(optimizer, FusedBackward)
    final = {
        "parameters": parameters,
        "param_bytes": parameters * width,
        "grad_bytes": parameters * width,
        "live_grad_bytes": largest * width if fused else parameters * width,
        "moment1_bytes": bytes_of["exp_avg"],
        "moment2_bytes": bytes_of["exp_avg_sq"],
        "other_state_bytes": bytes_of["other"],
        "master_bytes": master,
        "state_bytes": sum(bytes_of.values()) + master,
        "second_moment_scalars": second_moment_scalars(inner),
        "largest_param_bytes": largest * width,
    }
    return {"metrics": {"final": final}}


def second_moment_scalars(optimizer: torch.optim.Optimizer) -> int:
    """Elements of the second moment over all parameters; 0 for rules without one."""
    return sum(state["exp_avg_sq"].numel() for state in optimizer.state.values() if "exp_avg_sq" in state)


def _torch_name(dtype: str) -> str:
    return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
