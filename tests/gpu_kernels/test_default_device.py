"""Tables and numbers of a step are made on the host, whatever torch's default device is."""

import pytest
import torch
from torch import nn

from lowmem.optim import SGD, AdamMini, AdamW


@pytest.mark.parametrize(
    "rule, settings", [(AdamMini, {}), *((rule, {"rounding": "stochastic"}) for rule in (AdamMini, AdamW, SGD))]
)
def test_another_default_device_changes_no_step(rule, settings):
    kind = type(rule.__name__, (rule,), {"ways_on_cpu": rule.ways_elsewhere})
    weights = []
    for device in ("cpu", "meta"):
        p = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16 if settings else torch.float32))
        p.grad = torch.full_like(p, 0.5)
        optimizer = kind([("p", p)], lr=0.1, **settings)
        torch.manual_seed(0)
        with torch.device(device):
            optimizer.step()
        assert optimizer.step_kernel == "Triton"
        weights.append(p.detach())
    assert torch.equal(*weights) and (weights[0] != 1).any()
