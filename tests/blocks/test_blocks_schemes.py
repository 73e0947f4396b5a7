"""Schemes, switches and overrides of the partition, and its printed table."""

import re

import pytest
import torch
from block_nets import Fused, counts, named, tiny_gpt2, tiny_llama
from torch import nn

from lowmem.blocks import Misfit, ParamBlocks, partition


def test_version_1_0_keeps_adam_for_tables_and_one_block_for_all_but_queries_and_keys():
    model = tiny_llama()
    found = counts(model, scheme="v1.0")
    assert found["tokens.weight"] == found["head.weight"] == 20 * 16
    assert found["blocks.0.attention.wq.weight"] == 4 and found["blocks.0.attention.wk.weight"] == 2
    assert {found[f"blocks.0.{n}.weight"] for n in ("attention.wv", "attention.wo", "mlp.up", "norm1")} == {1}


@pytest.mark.parametrize(
    "build", [tiny_gpt2, tiny_llama, lambda: nn.TransformerEncoderLayer(12, 3), lambda: nn.ModuleList([Fused()])]
)
def test_the_tensor_scheme_has_one_block_per_tensor(build):
    model = build()
    assert partition(model, scheme="tensor").scalars == len(list(model.parameters()))


def test_the_tensor_scheme_needs_no_known_structure():
    model = named("OddAttention", mystery=nn.Linear(4, 12), experts=nn.Parameter(torch.randn(2, 3, 4)))
    assert set(counts(model, scheme="tensor").values()) == {1}
    assert counts(model, neurons=False) == {"experts": 1, "mystery.weight": 1, "mystery.bias": 12}


def test_switches_change_only_what_they_name():
    model = tiny_llama()
    base = counts(model)

    def changed(**switch):
        return {name: count for name, count in counts(model, **switch).items() if count != base[name]}

    assert changed(value="tensor") == {f"blocks.{i}.attention.wv.weight": 1 for i in range(2)}
    assert changed(embedding="tensor") == {"tokens.weight": 1} and changed(embedding="coordinate") == {
        "tokens.weight": 320
    }
    assert changed(output="tensor") == {"head.weight": 1} and changed(output="coordinate") == {"head.weight": 320}
    gpt = tiny_gpt2(bias=True)
    biases = {name: count for name, count in counts(gpt, biases="tensor").items() if name.endswith("bias")}
    assert set(biases.values()) == {1}


def test_value_as_one_block_inside_a_fused_projection():
    blocks = partition(nn.TransformerEncoderLayer(12, 3), value="tensor")["self_attn.in_proj_weight"]
    assert blocks.count == 3 + 3 + 1
    with pytest.raises(Misfit, match="in_proj_weight: value='coordinate'"):
        partition(nn.TransformerEncoderLayer(12, 3), value="coordinate")


@pytest.mark.parametrize(
    "wrong", [dict(scheme="v2"), dict(value="head"), dict(biases="row"), dict(embedding="no"), dict(output=1)]
)
def test_wrong_switches_name_the_choices(wrong):
    with pytest.raises(ValueError, match="choose from"):
        partition(tiny_gpt2(), **wrong)


def test_overrides_place_by_name_pattern_number_and_blocks():
    model = tiny_gpt2()
    made = ParamBlocks("mine", (16, 16), "head", 2, 0, ((0, 16, 8),))
    found = partition(model, overrides={
        "blocks.*.wo.weight": "tensor", "blocks.0.attention.wo.weight": "column", "positions.weight": "coordinate",
        "tokens.weight": 5, "blocks.1.mlp.down.weight": "row", "blocks.1.attention.wv.weight": made, "norm.weight": 16,
    })  # fmt: skip
    assert found["blocks.1.attention.wo.weight"].count == 1
    assert found["blocks.0.attention.wo.weight"].axis == 1 and found["blocks.0.attention.wo.weight"].count == 16
    assert (found["positions.weight"].count, found["tokens.weight"].count, found["norm.weight"].count) == (128, 5, 16)
    assert found["blocks.1.attention.wv.weight"].segments == ((0, 16, 8),)
    assert found["blocks.1.attention.wv.weight"].name == "blocks.1.attention.wv.weight"
    again = partition(model).override({"tokens.weight": 5})
    assert again["tokens.weight"].count == 5 and again["positions.weight"].count == 8


def test_a_name_beats_a_pattern_whatever_the_order():
    model = tiny_gpt2()
    for order in (1, -1):
        pairs = [("*.wo.weight", "tensor"), ("blocks.0.attention.wo.weight", 2)][::order]
        assert counts(model, overrides=dict(pairs))["blocks.0.attention.wo.weight"] == 2


@pytest.mark.parametrize(
    "overrides",
    [{"no.such.*": "row"}, {"tokens.weight": 3}, {"tokens.weight": 0}, {"tokens.weight": True}, {"tokens.weight": "neuron"},
     {"norm.weight": "column"}, {"tokens.weight": ParamBlocks("x", (2, 2), "tensor", 1)}],
    ids=str,
)  # fmt: skip
def test_wrong_overrides_name_the_parameter(overrides):
    with pytest.raises(Misfit, match=re.escape(next(iter(overrides)))) as error:
        partition(tiny_gpt2(), overrides=overrides)
    assert "\n" not in str(error.value)


def test_the_printed_table_has_one_line_per_kind_and_the_total():
    text = str(partition(tiny_llama()))
    lines = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    assert lines[0] == ["parameter", "shape", "blocks", "scalars"]
    assert lines[1] == ["tokens.weight", "20 x 16", "20 token", "20"]
    assert ["blocks.*.attention.wq.weight x 2", "32 x 16", "4 head", "8"] in lines
    assert ["blocks.*.norm1.weight x 2", "16", "1 tensor", "2"] in lines
    parameters = sum(p.numel() for p in tiny_llama().parameters())
    assert lines[-1][0] == "total" and lines[-1][1] == f"{parameters:,} parameters"
    assert lines[-1][3].startswith(f"{partition(tiny_llama()).scalars:,} (")
    assert len(lines) == 14 and len({len(line) for line in text.splitlines()}) == 1


def test_sums_of_blocks_equal_the_size_of_every_parameter():
    for model in (tiny_gpt2(bias=True), tiny_llama(), nn.Transformer(12, 3, 1, 1, 20, batch_first=True)):
        for blocks in partition(model):
            assert blocks.shape == tuple(model.get_parameter(blocks.name).shape)
            sizes = [size for start, stop, size in blocks.segments for _ in range(start, stop, size)]
            slice_numel = blocks.numel // blocks.shape[blocks.axis]
            covered = (
                sum(sizes) * slice_numel if sizes else blocks.count
            )  # one per coordinate when there are no segments
            assert covered == blocks.numel and blocks.count == (len(sizes) or blocks.numel), blocks.name
