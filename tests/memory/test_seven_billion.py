"""The fine-tuning of examples/finetune_7b_24gb.py: its peak is weights, state, one gradient and activations, nothing more."""

import dataclasses

import pytest

from lowmem.blocks import partition
from lowmem.memory import hardware, target_model
from lowmem.memory.accountant import estimate_memory
from lowmem.memory.cell import TrainingSetup

SMALL = {
    "name": "llama",
    "n_layer": 12,
    "n_head": 4,
    "n_embd": 256,
    "n_hidden": 768,
    "vocab_size": 1000,
    "block_size": 256,
}
RULE = {"name": "adam_mini", "state_dtype": "int8", "rounding": "stochastic", "backward": {"max_grad_norm": 1.0}}


def parts(name) -> tuple:
    """(account of the example's step, bytes of weights, state and the largest gradient by counting, activations of a step
    that has no state and no norm: the most that LOMO has)."""
    target = target_model.find(name)
    cell = TrainingSetup(optimizer=RULE, seq_len=min(2048, target.longest), precision="bf16", checkpointing=True)
    model = target.build(target.depth, "fused")
    blocks, sizes = partition(model), {name: p.numel() for name, p in model.named_parameters()}
    state = sum(n + 4 * -(-n // 256) + 4 * blocks[name].count for name, n in sizes.items())
    plain = estimate_memory(target, dataclasses.replace(cell, optimizer={"name": "lomo"}))
    counted = 2 * sum(sizes.values()), state, 2 * max(sizes.values())
    return estimate_memory(target, cell), *counted, plain.most["activations"]


@pytest.mark.parametrize("name", [SMALL, pytest.param("llama2-7b", marks=pytest.mark.slow)], ids=["small", "7B"])
def test_the_peak_is_weights_state_the_largest_gradient_and_activations_within_5_percent(name):
    found, weights, state, gradient, activations = parts(name)
    assert found.most["optimizer_state"] == state
    assert found.most["parameters"] == pytest.approx(weights, rel=0.02)  # and buffers
    assert weights + state < found.peak <= 1.05 * (weights + state + gradient + activations)
    if name == "llama2-7b":
        assert found.peak < 0.95 * hardware.find("rtx-4090").usable
