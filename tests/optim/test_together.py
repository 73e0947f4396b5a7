"""Two optimizers in one run: LOMO inside backward on the base weights, AdamW after it on the adapters."""

import copy

import pytest
import torch

from lowmem.errors import Misuse
from lowmem.optim import make
from lowmem.pipeline.experiments import find_root
from lowmem.weights import pretrained

ROOT = find_root()
TINY = {"name": "llama", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_hidden": 32, "block_size": 256}
BOTH = {"adapter": {"kind": "lora", "rank": 2, "freeze": False}}
ADAMW = {"name": "adamw", "lr": 1e-2}
BESIDE = {"parameters": "*lora_*", **ADAMW, "max_grad_norm": 1.0}
TOGETHER = {"name": "lomo", "lr": 0.1, "max_grad_norm": 1.0, "beside": BESIDE}


def test_lomo_with_adamw_on_adapters_is_both_optimizers_on_their_own_parameters():
    torch.manual_seed(0)
    settings = {**TINY, "adapter": {**BOTH["adapter"], "dropout": 0.0}}
    model, _ = pretrained.language_model(ROOT, settings)
    torch.manual_seed(0)
    alone, _ = pretrained.language_model(ROOT, settings)
    joint = make(model, **{**TOGETHER, "beside": {"parameters": "*lora_*", **ADAMW}})
    adapters = [(n, p) for n, p in alone.named_parameters() if "lora_" in n]
    rest = [(n, p) for n, p in alone.named_parameters() if "lora_" not in n]
    one = make(alone, name="lomo", lr=0.1, max_grad_norm=1.0, only=rest)
    other = make(alone, **ADAMW, only=adapters)
    tokens = torch.randint(0, 200, (2, 9))
    for _ in range(3):
        joint.backward(model(tokens, tokens))
        joint.step()
        joint.zero_grad()
        one.backward(alone(tokens, tokens))
        one.step()
        other.step()
        other.zero_grad()
    for (name, p), (_, q) in zip(model.named_parameters(), alone.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    assert joint.grad_norm == one.grad_norm and len(joint.param_groups) == 2


def test_a_pair_of_optimizers_continues_from_its_state():
    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        tokens = torch.randint(0, 200, (2, 9))
        optimizer.backward(model(tokens, tokens))
        optimizer.step()
        optimizer.zero_grad()

    settings = {**TINY, "adapter": {"kind": "lora", "rank": 2, "freeze": False, "dropout": 0.0}}
    torch.manual_seed(0)
    model, _ = pretrained.language_model(ROOT, settings)
    optimizer = make(model, **TOGETHER)
    step(model, optimizer, 1)
    weights, state = {k: v.clone() for k, v in model.state_dict().items()}, copy.deepcopy(optimizer.state_dict())
    step(model, optimizer, 2)
    again, _ = pretrained.language_model(ROOT, settings)
    again.load_state_dict(weights)
    other = make(again, **TOGETHER)
    other.load_state_dict(state)
    step(again, other, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ({"name": "adamw", "lr": 1e-3}, "name the parameters it updates"),
        ({"parameters": "*", **ADAMW}, "takes every parameter"),
        ({"parameters": "*none*", **ADAMW}, "matches no parameter"),
    ],
)
def test_a_second_optimizer_without_parameters_of_its_own_is_refused(beside, told):
    model, _ = pretrained.language_model(ROOT, {**TINY, **BOTH})
    with pytest.raises(Misuse, match=told):
        make(model, name="lomo", lr=0.1, beside=beside)
    with pytest.raises(Misuse, match="updates inside backward"):
        make(model, **ADAMW, beside={"parameters": "*lora_*", **ADAMW})
