"""Optimizers of this package with step() in torchtitan, blocks found from the sharded model.

    config.optimizer = Optimizers.Config(name="adam_mini", settings={"lr": 8e-4, "weight_decay": 0.1})

Tried with torchtitan 0.3.0, whose own containers know Adam, AdamW and Muon only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.models.common.attention import FusedQKVLinear

from lowmem.blocks import along
from lowmem.optim._factory import find, make
from lowmem.optim.core.fused_backward import FusedBackward


class Optimizers(OptimizersContainer):
    """One optimizer per part of the model (there are several under pipeline parallelism).

    name: as in lowmem.optim.make. settings: its keywords. Clipping and schedules are torchtitan's.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        name: str = "adam_mini"
        settings: dict[str, Any] = field(default_factory=dict)

    def __init__(self, config: Config, *, model_parts: list[nn.Module]):
        self.model_parts = model_parts
        self.optimizers = []
        for part in model_parts:
            known = {"overrides": fused_blocks(part)} if getattr(find(config.name), "uses_blocks", False) else {}
            self.optimizers.append(make(part, config.name, **{**known, **config.settings}))
        for optimizer in self.optimizers:
            if isinstance(optimizer, FusedBackward):
                optimizer.close()
                raise ValueError(
                    f"{config.name} works inside backward, which torchtitan's trainer calls itself; use a rule with step()"
                )
        parameters = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        parameters = [p for p in parameters if p.requires_grad]
        self._validate_params(parameters)
        self._post_init(parameters)


def fused_blocks(model: nn.Module) -> dict:
    """Blocks of torchtitan's fused projections, {parameter name: blocks}, for partition(model, overrides=...).

    Their rows (FusedQKVLinear) are, key head by key head, the queries that share it, the key, the value.
    """
    found: dict = {}
    for path, module in model.named_modules():
        joint = getattr(module, "qkv_linear", None)
        if not isinstance(joint, FusedQKVLinear):
            continue
        name, weight, size = f"{path}.qkv_linear.wqkv.weight", joint.wqkv.weight, joint.head_dim
        segments, queries, turn = [], joint.heads_per_kv * size, joint.r_dim * size
        for start in range(0, weight.shape[0], turn):
            value = start + queries + size
            segments += [(start, value, size), (value, start + turn, 1)]  # heads of queries and keys, rows of values
        found[name] = along(name, tuple(weight.shape), "mixed", tuple(segments))
        found[f"{path}.wo.weight"] = "row"
    return found
