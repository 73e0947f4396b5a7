"""LoRA, packed weights, optimizers of other packages, accumulation and experts, as the accountant counts them."""

import dataclasses

import pytest
import torch
from torch import nn

from lowmem.errors import Misuse
from lowmem.memory import adapters, fake_ranks, foreign_optimizers, target_model
from lowmem.memory.accountant import estimate_memory, trace
from lowmem.memory.adapters import Adapters
from lowmem.memory.cell import TrainingSetup

LLAMA = {
    "name": "llama",
    "n_layer": 3,
    "n_head": 2,
    "n_embd": 64,
    "n_hidden": 160,
    "vocab_size": 256,
    "block_size": 128,
}
TARGETS = ("wq", "wv")
PLAIN = TrainingSetup(optimizer={"name": "adamw_fused"}, batch=2, seq_len=64)
LORA = dataclasses.replace(PLAIN, adapters=Adapters(rank=4, targets=TARGETS))
WEIGHTS = 3 * 2 * 4 * (64 + 64)  # layers, targets, rank, both sides
LINEAR = 3 * (4 * 64 * 64 + 3 * 64 * 160)


def of(cell: TrainingSetup, **changes):
    return estimate_memory(target_model.find(LLAMA), dataclasses.replace(cell, **changes), full_depth=True)


def test_only_adapters_have_gradients_and_state():
    found = of(LORA)
    assert found.most["gradients"] == 4 * WEIGHTS
    assert found.most["optimizer_state"] == 8 * WEIGHTS
    half = of(LORA, adapters=dataclasses.replace(LORA.adapters, dtype="16"))
    assert half.most["gradients"] == 2 * WEIGHTS


@pytest.mark.parametrize(("base", "bits"), [("nf4", 4.5), ("nf4-dq", 4.127), ("gptq", 4.15625)])
def test_packed_weights_take_four_bits_and_their_scales(base, bits):
    plain, packed = (
        of(LORA, adapters=dataclasses.replace(LORA.adapters, base=kind)).most["parameters"] for kind in ("16", base)
    )
    assert plain - packed == pytest.approx(LINEAR * (16 - bits) / 8, rel=0.002)


def test_the_rest_of_a_packed_model_may_be_in_fp32():
    kept, wide = (
        of(LORA, adapters=Adapters(rank=4, targets=TARGETS, base="nf4", rest=rest)).most["parameters"]
        for rest in ("16", "fp32")
    )
    outside = 2 * 256 * 64 + 7 * 64  # embedding, output, norms
    assert wide - kept == 2 * outside


def test_a_packed_layer_computes_on_its_unpacked_weight_and_passes_gradients():
    layer = adapters.Packed(nn.Linear(8, 6, bias=False, device="meta", dtype=torch.bfloat16), 4 / 64)
    x = torch.empty(3, 8, device="meta", dtype=torch.float32, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (3, 6) and y.dtype == torch.float32 and x.grad.shape == (3, 8)
    assert not layer.weight.requires_grad


@pytest.mark.parametrize(
    ("name", "bytes_per_weight"),
    [
        ("adamw_fused", 4.0),
        ("adamw_foreach", 4.0),
        ("adamw8bit", 2.03),
        ("paged_adamw8bit", 0),
        ("ao_adamw8bit", 2.03 + 0.084),  # a table of 2 KiB for each of 23 tensors, of 0.56 M weights
        ("ao_adamw4bit", 1.0625 + 0.005),
        ("ao_adamw_fp8", 2.03),
    ],
)
def test_state_of_other_packages_is_counted_per_weight(name, bytes_per_weight):
    model = target_model.find({**LLAMA, "n_embd": 128, "n_hidden": 256})
    found = estimate_memory(model, dataclasses.replace(PLAIN, optimizer={"name": name}), full_depth=True)
    assert found.most["optimizer_state"] / model.parameters() == pytest.approx(bytes_per_weight, abs=0.02)
    assert (found.host > 0) == name.startswith("paged")


def test_the_default_of_torch_holds_a_further_copy_of_one_moment():
    model = target_model.find(LLAMA)
    fused, foreach = (of(PLAIN, optimizer={"name": name}).phases["update"] for name in ("adamw_fused", "adamw_foreach"))
    assert foreach - fused == pytest.approx(2 * model.parameters(), rel=0.01)


def test_accumulation_keeps_gradients_through_the_next_forward():
    once, twice, often = (of(PLAIN, accumulate=n) for n in (1, 2, 6))
    whole = 2 * target_model.find(LLAMA).parameters()
    assert twice.phases["forward, loss"] - once.phases["forward, loss"] == pytest.approx(whole, rel=0.01)
    assert often.peak == twice.peak
    assert often.work.operations("forward") == pytest.approx(6 * once.work.operations("forward"))
    assert often.work.operations("update") == once.work.operations("update")


def test_the_older_fsdp_holds_inputs_of_frozen_layers():
    model = target_model.find(LLAMA)
    cell = dataclasses.replace(LORA, gpus=2, checkpointing=True)
    new, old = (
        trace(model, dataclasses.replace(cell, fsdp1=flag), 3)[0]["backward, first layer"] for flag in (False, True)
    )
    grown = sum(old.values()) - sum(new.values())
    assert grown >= 2 * 2 * 64 * 64 * 2  # two layers' inputs, 2 x 64 tokens x 64 in 16 bits


def test_few_experts_are_cut_along_another_length_than_their_number():
    chosen = fake_ranks.placement(16)
    assert chosen(nn.Parameter(torch.empty(8, 32, 48, device="meta"))).dim == 1
    assert chosen(nn.Parameter(torch.empty(8, 30, 48, device="meta"))).dim == 2
    assert chosen(nn.Parameter(torch.empty(16, 30, 48, device="meta"))) is None
    assert chosen(nn.Parameter(torch.empty(8, 32, device="meta"))) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adapters": Adapters(rank=0)}, "a rank is a whole number"),
        ({"adapters": Adapters(base="nf5")}, "did you mean 'nf4'"),
        ({"adapters": Adapters(targets=("q_proj",))}, "no linear layer is called 'q_proj'"),
        ({"adapters": Adapters(base="nf4"), "precision": "mixed"}, "--precision bf16"),
        ({"adapters": Adapters(), "precision": "master"}, "without tensor parallelism and master weights"),
        ({"accumulate": 0}, "at least 1"),
        ({"accumulate": 2, "optimizer": {"name": "lomo"}}, "one batch per step"),
        ({"offload": True}, "without offload"),
    ],
)
def test_what_does_not_fit_together_is_one_line(changes, says):
    with pytest.raises(Misuse, match=says):
        of(PLAIN, **changes)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("ao_adamw8bit", (64, 64), 2 * (4096 + 4 * 16 + 4 * 256)),
        ("ao_adamw4bit", (64, 64), 2 * (2048 + 4 * 32 + 4 * 16)),
        ("ao_adamw_fp8", (64, 64), 2 * (4096 + 4 * 16)),
        ("ao_adamw4bit", (33, 128), 2 * (33 * 64 + 4 * 33 + 4 * 16)),  # blocks of 128 divide it, of 256 not
        ("ao_adamw8bit", (33, 128), 2 * 2 * 33 * 128),  # as it is, in 16 bits
        ("ao_adamw_fp8", (4095,), 2 * 2 * 4095),
        ("adamw8bit", (64, 64), 2 * (4096 + 4 * 16)),
        ("adamw8bit", (4095,), 2 * 4 * 4095),
    ],
)
def test_bytes_of_a_tensors_moments_are_those_of_the_packages_source(name, shape, expected):
    optimizer = foreign_optimizers.Foreign(nn.Module(), name, tracker=None)
    state = optimizer.moments(torch.empty(shape, dtype=torch.bfloat16))
    assert sum(x.numel() * x.element_size() for x in state.values()) == expected
