"""DTensors on real processes: with identical gradients, 20 steps end where one process ends, for every rule."""

import pytest
import ranks
import sharded_models
import torch
import zoo
from torch.distributed.tensor import DTensor

from lowmem.optim import CAME, Adafactor, AdamMini

pytestmark = pytest.mark.slow

STEPS, DRAWS, TOLERANCE = 20, 5, 1e-6  # gradients repeat after five steps: cutting them is what takes time
RULES = dict(zoo.SETTINGS) | {f"adam_mini-{r}": (AdamMini, dict(lr=1e-2, reduce=r)) for r in ("min", "l2")}
RULES["adafactor-decay"] = (Adafactor, dict(lr=1e-2, weight_decay=0.1))
RULES["came"] = (CAME, dict(lr=2e-3))  # at 1e-2 its weights move by whole units, of which fp32 rounds 1e-6 away
MAIN = ("adam_mini", "adam_mini-max", "adamw", "adafactor", "came", "sm3", "lamb")  # each kind of sum once
SUMS = ("adam_mini", "came", "sm3")  # one, three and a largest
LAYOUTS = {  # rules; on simulated ranks all do all (test_sharding.py)
    ("fsdp", 3): tuple(RULES),
    ("columns", 3): (*SUMS, "adam_mini-int8"),
    ("tensor-parallel", 2): MAIN,
    ("fsdp-tensor-parallel", 4): (*SUMS, "adam_mini-int8"),
    ("hybrid", 4): SUMS,
}
# Reductions per step: one per stage over each sharded mesh axis (two axes for fsdp-tensor-parallel).
STAGES = {"adam_mini": 1, "adam_mini-max": 1, "adafactor": 2, "came": 3, "sm3": 1, "lamb": 1, "adamw": 0, "lion": 0}
STAGES |= {"adam_mini-int8": 2, "adamw-int8": 1, "lion-int8": 1}  # and the scales


def random_model(step: int):
    """A model whose weights are the gradients of a step, so that torch's own code cuts them like the parameters."""
    model = sharded_models.build()
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def train_alike(rank: int, world: int, how: str) -> dict:
    cut = [list(sharded_models.sharded(how, random_model(k), world).parameters()) for k in range(DRAWS)]
    plain = [list(random_model(k).parameters()) for k in range(DRAWS)]
    found = {}
    for rule in LAYOUTS[how, world]:
        cls, keywords = RULES[rule]
        one = sharded_models.build()
        many = sharded_models.sharded(how, sharded_models.build(), world)
        assert any(isinstance(p, DTensor) for p in many.parameters())
        alone, together = cls(one, **keywords), cls(many, **keywords)
        counts: list[dict] = []
        for k in range(STEPS):
            for p, g in zip(one.parameters(), plain[k % DRAWS], strict=True):
                p.grad = g.detach().clone()
            for p, g in zip(many.parameters(), cut[k % DRAWS], strict=True):
                p.grad = g.detach().clone()
            alone.step()
            counts.append(ranks.collectives(together.step))
        saved, own = together.state_dict(), alone.state_dict()
        state = 0.0
        for i, entry in own["state"].items():
            for key, value in entry.items():
                state = max(state, float((sharded_models.full(saved["state"][i][key]) - value).abs().max()))
        found[rule] = {
            "worst": sharded_models.worst(sharded_models.weights(one), sharded_models.weights(many)),
            "state": state,
            "all_reduce": sorted({c.get("all_reduce", 0) for c in counts[1:]}),
            "other": sorted({name for c in counts[1:] for name in c} - {"all_reduce"}),
        }
    return found


@pytest.mark.parametrize("how, world", LAYOUTS, ids=lambda x: str(x))
def test_all_rules_end_where_one_process_ends_with_one_reduction_per_stage(how, world):
    results = ranks.launch(train_alike, world, how, timeout=200)
    axes = 2 if how == "fsdp-tensor-parallel" else 1
    for found in results:
        for rule, seen in found.items():
            print(how, world, rule, seen)
            assert seen["worst"] <= TOLERANCE, (rule, seen)
            assert seen["state"] <= 1e-5 * (100 if rule.startswith("adam_mini") else 1), (rule, seen)
            assert not seen["other"], (rule, seen)
            if rule in STAGES:
                assert seen["all_reduce"] == [STAGES[rule] * axes], (rule, seen)


def train_uncut(rank: int, world: int) -> dict:
    """Rows over two ranks end between heads and rows everywhere: 16 rows of heads of 8, 24 hidden, 12 tokens."""
    settings = dict(n_layer=2, n_head=2, n_embd=16, vocab_size=12, block_size=8, n_hidden=24)

    def make():
        torch.manual_seed(0)
        return sharded_models.llama.build(**settings)

    one, many = make(), sharded_models.sharded("fsdp", make(), world)
    # norms are one block each and would be cut, so they are cut by coordinate here
    overrides = {"overrides": {"*norm*": "coordinate"}}
    alone, together = AdamMini(one, lr=1e-2, **overrides), AdamMini(many, lr=1e-2, **overrides)
    counts = []
    for k in range(5):
        generator = torch.Generator().manual_seed(k)
        full = [torch.randn(p.shape, generator=generator) for p in one.parameters()]
        for p, q, g in zip(one.parameters(), many.parameters(), full):
            p.grad = g
            rows = g.chunk(world)[rank].contiguous()
            q.grad = DTensor.from_local(rows, q.device_mesh, q.placements, run_check=False)
        alone.step()
        counts.append(ranks.collectives(together.step))
    stale = sharded_models.worst(
        {str(i): s["exp_avg_sq"] for i, s in alone.state_dict()["state"].items()},
        {str(i): sharded_models.full(s["exp_avg_sq"]) for i, s in together.state_dict()["state"].items()},
    )
    return {
        "worst": sharded_models.worst(sharded_models.weights(one), sharded_models.weights(many)),
        "counts": counts,
        "stale": stale,
    }


def test_adam_mini_sends_nothing_when_no_block_is_cut_and_completes_its_state_when_saved():
    for found in ranks.launch(train_uncut, 2):
        assert found["worst"] <= TOLERANCE
        assert found["counts"][1:] == [{}] * 4
        assert found["stale"] <= 1e-6
