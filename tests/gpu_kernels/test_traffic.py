"""Bytes that the kernels read and write per element, counted as the interpreter loads and stores them."""

from collections import Counter

import pytest
import torch
from block_layouts import optimizer_over
from kernel_cases import by_kernels, gradients
from torch import nn

from lowmem.blocks import along, coordinates
from lowmem.models import gpt2, llama
from lowmem.optim import SGD, AdamMini, AdamW, gpu_tables

ROWS = along("rows", (64, 64), "neuron", ((0, 64, 1),))
HEADS = along("heads", (64, 64), "head", ((0, 64, 16),))
COLUMNS = along("columns", (64, 64), "neuron", ((0, 64, 1),), axis=1)
FLAT = coordinates("flat", (4096,))


@pytest.fixture
def traffic(monkeypatch):
    """A Counter of bytes "read" and "written" by vectors. Not counted: what a program loads one by one, some 25 numbers
    of its tables, a tenth of a byte for each of its elements at the real size of a tile."""
    from triton.runtime.interpreter import InterpreterBuilder

    for name, tile in dict(TILE=256, DOWN=32, ACROSS=64, SETTLE=256).items():
        monkeypatch.setattr(gpu_tables, name, tile)
    counted = Counter()

    def watched(name: str, what: str):
        original = getattr(InterpreterBuilder, name)

        def run(self, pointers, *arguments, **named):
            mask = arguments[1 if what == "written" else 0]
            if mask.data.size > 1:
                counted[what] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return original(self, pointers, *arguments, **named)

        monkeypatch.setattr(InterpreterBuilder, name, run)

    watched("create_masked_load", "read")
    watched("create_masked_store", "written")
    return counted


def per_element(traffic, optimizer, parameters) -> tuple[float, float]:
    """(bytes read, bytes written) per element in one step."""
    gradients(parameters, 0)
    by_kernels(optimizer).step()
    traffic.clear()
    gradients(parameters, 1)
    optimizer.step()
    elements = sum(p.numel() for p in parameters)
    return traffic["read"] / elements, traffic["written"] / elements


@pytest.mark.parametrize(
    ("blocks", "dtype", "read", "written"),
    [  # fp32: 12 read, 8 written, once more the gradient of a long or strided block, and its block scalars
        (ROWS, torch.float32, 12, 8),
        (ROWS, torch.bfloat16, 6, 4),
        (HEADS, torch.float32, 16, 8),
        (HEADS, torch.bfloat16, 8, 4),
        (COLUMNS, torch.float32, 16, 8),
        (COLUMNS, torch.bfloat16, 8, 4),
        (FLAT, torch.float32, 16, 12),
    ],
)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_adam_mini_reads_and_writes_each_tensor_once(traffic, blocks, dtype, read, written, rounding):
    optimizer, parameters = optimizer_over([blocks], 0, dtype=dtype, rounding=rounding)
    found = per_element(traffic, optimizer, parameters)
    assert read <= found[0] <= read + 0.3 and written <= found[1] <= written + 0.3, found


def test_adamw_and_descent_read_and_write_each_tensor_once(traffic):
    adamw = AdamW([nn.Parameter(torch.randn(4096).bfloat16())], lr=1e-2, rounding="stochastic")
    assert per_element(traffic, adamw, adamw.param_groups[0]["params"]) == (8, 6)
    descent = SGD([nn.Parameter(torch.randn(4096).bfloat16())], lr=1e-2, rounding="stochastic")
    assert per_element(traffic, descent, descent.param_groups[0]["params"]) == (4, 2)


MODELS = {
    "llama 134M": lambda: llama.build(
        n_layer=12, n_head=12, n_embd=768, n_hidden=2048, vocab_size=32000, block_size=1024
    ),
    "llama 7B": lambda: llama.build("llama2-7b"),
    "gpt2 125M": lambda: gpt2.build("125m"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_a_real_model_moves_at_most_24_bytes_per_element_in_fp32_and_12_in_bf16(name):
    """From the share of long and strided blocks in its tables and the bytes that the test above counted."""
    with torch.device("meta"):
        model = MODELS[name]()
    optimizer, twice, scalars, elements = AdamMini(model, lr=1e-3), 0, 0, 0
    for p in model.parameters():
        elements += p.numel()
        scalars += optimizer.blocks(p).count
        for _, _, outer, _, blocks, run in optimizer.layout(p).strips:
            twice += outer * blocks * run if outer > 1 or run > 16384 else 0
    for size, most in ((4, 24), (2, 12)):
        moved = (5 * size * elements + size * twice + 16 * scalars) / elements
        assert 5 * size < moved <= most
