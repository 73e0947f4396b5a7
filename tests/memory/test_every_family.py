"""Every causal family of the installed transformers, in the size its configuration has by itself: planned, or refused truly."""

import json
import re
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.memory import accountant, target_model
from lowmem.memory.cell import TrainingSetup
from lowmem.models import _hub

KINDS = {  # of refusals
    "transformers cannot build it as a causal language model": "of another library or of settings that have no default",
    "a step of it cannot be traced": "without more than text, or with shapes that depend on the text",
}


def plan(name: str, precision: str) -> str:
    """'planned', after the state of AdamW was counted for every weight, or the reason in one line."""
    try:
        target = target_model.find(name)
        attention = "fused" if target.fused else "eager"
        cell = TrainingSetup(
            optimizer={"name": "adamw"}, seq_len=min(64, target.longest), attention=attention, precision=precision
        )
        few = target_model.traced(target.depth, target.lead, target.period)
        with _hub.in_one_line(name, "a step of it cannot be traced"):
            found = accountant.summary([accountant.trace(target, cell, few)], (few,), 0.0)
        trained = target_model.trained(target.build(few, attention))
    except Misuse as error:
        return str(error)
    each = 4 if precision == "bf16" else 8  # bytes of both moments
    assert 0.95 < found.most["optimizer_state"] / (each * trained) <= 1, (
        name
    )  # a step may leave towers for pictures out
    assert found.peak >= 3 * found.most["optimizer_state"] / 2, name
    return "planned"


def fails_by_itself(config, precision: str) -> bool:
    """Whether transformers' own model cannot be built, or cannot make a step on text alone, without anything of ours."""
    from transformers import AutoModelForCausalLM

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _hub.quiet():
            model = AutoModelForCausalLM.from_config(config).train()
            model = model.bfloat16() if precision == "bf16" else model.float()
            tokens = torch.zeros(1, 64, dtype=torch.int64)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
    except Exception:
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(1500)  # of a busy machine
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["bf16", "mixed"])
def test_every_causal_family_is_planned_or_refused_for_a_true_reason(precision, tmp_path):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    counts, wrong = {}, {}
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            with _hub.quiet():
                config = CONFIG_MAPPING[family]()
        except Exception:  # transformers' own default is none
            counts["no default"] = counts.get("no default", 0) + 1
            continue
        (tmp_path / family).mkdir()
        kept = json.dumps({**config.to_dict(), "model_type": family}, default=str)
        (tmp_path / family / "config.json").write_text(kept)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = plan(str(tmp_path / family), precision)
        kind = next((kind for kind in KINDS if re.match(rf"model \S+: {kind}: ", text)), text)
        counts[kind] = counts.get(kind, 0) + 1
        if text != "planned" and (kind not in KINDS or not fails_by_itself(config, precision)):
            wrong[family] = text
    assert not wrong
    assert counts.keys() <= {"planned", "no default", *KINDS}
    built = counts["planned"] + counts["a step of it cannot be traced"]  # what transformers itself can build
    assert counts["planned"] >= 0.9 * built >= 0.9 * 150, counts


SMALL = dict(
    hidden_size=64, intermediate_size=96, moe_intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    num_hidden_layers=3, vocab_size=64, num_local_experts=8, num_experts=8, num_experts_per_tok=2, max_position_embeddings=64,
)  # fmt: skip


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss"])
def test_families_with_experts_are_planned_in_every_precision_that_a_plan_may_ask_for(family, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "model_type": family}))
    assert [plan(str(tmp_path), precision) for precision in ("fp32", "mixed", "bf16")] == 3 * ["planned"]


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_grouped_products_make_the_tensors_of_the_real_kernel_also_under_autocast(dtype):
    def made() -> list[tuple]:
        a, b = (torch.zeros(*shape, dtype=dtype).requires_grad_() for shape in ((6, 16), (2, 24, 16)))
        with torch.autocast("cpu", torch.bfloat16):
            out = F.grouped_mm(a, b.transpose(1, 2), offs=torch.tensor([2, 6], dtype=torch.int32))
        out.backward(torch.zeros(6, 24, dtype=dtype))
        return [(x.shape, x.dtype, x.stride()) for x in (out, a.grad, b.grad)]

    real = made()
    with accountant.Shapes(allow_non_fake_inputs=True):
        assert made() == real
