"""Experts divided over GPUs: bytes per rank against real tensors that are cut, exchanges against arithmetic."""

import dataclasses
import json

import pytest
import torch

from lowmem import cli
from lowmem.errors import Misuse
from lowmem.memory import target_model
from lowmem.memory.accountant import estimate_memory
from lowmem.memory.cell import TrainingSetup

MIXTRAL = dict(
    model_type="mixtral", hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
    num_hidden_layers=3, vocab_size=64, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=64,
)  # fmt: skip
CELL = TrainingSetup(optimizer={"name": "adamw"}, batch=1, seq_len=32, gpus=8)


@pytest.fixture
def name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    return str(tmp_path)


def held(model: torch.nn.Module, rank: int, gpus: int, divided: int) -> int:
    """Bytes of the weights that a rank holds, by cutting the real ones: experts by number, then all by fully_shard's rows."""
    total, replicas = 0, gpus // divided
    for key, p in model.named_parameters():
        parts, at = gpus, rank
        if ".experts." in key:
            p, parts, at = p.chunk(divided)[rank % divided], replicas, rank // divided
        chunks = p.chunk(parts)
        total += chunks[at].numel() * 2 if at < len(chunks) else 0  # 16 bits
    return total


@pytest.mark.parametrize("divided", [2, 4, 8])
def test_a_rank_holds_the_bytes_of_its_experts_and_of_its_share_of_the_rest(name, divided):
    target = target_model.find(name)
    real = target.make()
    counted = estimate_memory(target, dataclasses.replace(CELL, expert_parallel=divided), full_depth=True)
    buffers = sum(b.numel() * 4 for b in real.buffers())
    assert 0 <= counted.most["parameters"] - held(real, 0, 8, divided) <= buffers
    assert counted.most["gradients"] == held(real, 0, 8, divided)
    assert counted.most["optimizer_state"] == 2 * held(real, 0, 8, divided)
    whole = sum(p.numel() * 2 for p in real.parameters())
    assert sum(held(real, rank, 8, divided) for rank in range(8)) == whole


def test_tokens_travel_to_their_experts_and_back_forward_and_backward(name):
    target = target_model.find(name)
    work = estimate_memory(target, dataclasses.replace(CELL, expert_parallel=8), full_depth=True).work
    moved = {key[0]: 0.0 for key in work if key[1] == "link"}
    for (stage, kind, amount, *axis), count in work.items():
        if kind == "link" and axis == ["expert"]:
            moved[stage] += amount * count
    once = 32 * 2 * 64 * 2  # tokens, experts of each, width, bytes
    assert moved["forward"] == moved["backward"] == 3 * 2 * once  # layers; there and back


@pytest.mark.parametrize(("precision", "kind"), [("bf16", "matmul"), ("mixed", "fp32 matmul"), ("fp32", "fp32 matmul")])
def test_the_products_of_experts_are_arithmetic_in_the_dtype_of_their_weights(precision, kind, tmp_path):
    work = []
    for each in (1, 2):
        (tmp_path / "config.json").write_text(json.dumps({**MIXTRAL, "num_experts_per_tok": each}))
        cell = dataclasses.replace(CELL, gpus=1, precision=precision)
        work.append(estimate_memory(target_model.find(str(tmp_path)), cell, full_depth=True).work)
    once = 3 * 2 * 32 * 3 * 64 * 96  # layers; two operations for each token and weight of an expert
    for stage, times in (("forward", 1), ("backward", 2)):
        one, two = (sum(n * key[2] for key, n in x.items() if key[:2] == (stage, kind)) for x in work)
        assert two - one == times * once == work[1].operations(stage) - work[0].operations(stage)


def test_experts_stay_where_they_are_instead_of_being_gathered(name):
    target = target_model.find(name)
    gathered, divided = (
        estimate_memory(target, dataclasses.replace(CELL, expert_parallel=ranks), full_depth=True) for ranks in (1, 8)
    )
    assert divided.most["communication"] < 0.6 * gathered.most["communication"]
    assert divided.most["parameters"] == gathered.most["parameters"]


@pytest.mark.parametrize("optimizer", ["adam_mini", "lomo"])
def test_other_rules_and_precisions_are_traced_too(name, optimizer):
    target = target_model.find(name)
    cell = dataclasses.replace(CELL, expert_parallel=4, optimizer={"name": optimizer}, precision="mixed")
    assert 0 < estimate_memory(target, cell).peak < estimate_memory(target, dataclasses.replace(cell, gpus=4)).peak


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"expert_parallel": 3}, "must divide the 8 data-parallel GPUs"),
        ({"expert_parallel": 16, "gpus": 16}, "does not divide 8 experts; the nearest that does: 8"),
        ({"expert_parallel": 2, "zero": 1}, "planned with --zero 2 or 3"),
        ({"expert_parallel": 2, "tensor_parallel": 2}, "without tensor parallelism"),
    ],
)
def test_what_cannot_be_divided_is_one_line(name, changes, says):
    with pytest.raises(Misuse, match=says):
        estimate_memory(target_model.find(name), dataclasses.replace(CELL, **changes))


def test_a_model_without_experts_is_refused_and_a_plan_says_what_is_divided(name, capsys):
    asked = ["--gpus", "8", "--expert-parallel", "8", "--seq-len", "8", "--optimizer", "adamw"]
    assert cli.main(["plan", "llama:20m", *asked]) == 2
    assert "no experts of a known form in this model" in capsys.readouterr().err
    assert cli.main(["plan", name, *asked]) == 0
    assert "experts divided over 8 (expert parallelism), tokens spread evenly" in capsys.readouterr().out
