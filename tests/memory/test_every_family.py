"""Every causal family of the installed transformers, in the size its configuration has by itself: planned, or refused truly."""

import json
import re
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem.errors import Misuse
from lowmem.memory import accountant, target_model
from lowmem.memory.cell import TrainingSetup
from lowmem.models import _hub

KINDS = {  # of refusals
    "transformers cannot build it as a causal language model": "of another library or of settings that have no default",
    "a step of it cannot be traced": "without more than text, or with shapes that depend on the text",
}


def plan(name: str) -> str:
    """'planned', after the state of AdamW was counted for every weight, or the reason in one line."""
    try:
        target = target_model.find(name)
        attention = "fused" if target.fused else "eager"
        cell = TrainingSetup(optimizer={"name": "adamw"}, seq_len=min(64, target.longest), attention=attention)
        few = target_model.traced(target.depth, target.lead, target.period)
        with _hub.in_one_line(name, "a step of it cannot be traced"):
            found = accountant.summary([accountant.trace(target, cell, few)], (few,), 0.0)
        trained = target_model.trained(target.build(few, attention))
    except Misuse as error:
        return str(error)
    assert 0.95 < found.most["optimizer_state"] / (4 * trained) <= 1, name  # a step may leave towers for pictures out
    assert found.peak >= 3 * found.most["optimizer_state"] / 2, name
    return "planned"


def fails_by_itself(config) -> bool:
    """Whether transformers' own model cannot be built, or cannot make a step on text alone, without anything of ours."""
    from transformers import AutoModelForCausalLM

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _hub.quiet():
            model = AutoModelForCausalLM.from_config(config).bfloat16().train()
            tokens = torch.zeros(1, 64, dtype=torch.int64)
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    except Exception:
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(590)
@pytest.mark.filterwarnings("ignore")
def test_every_causal_family_is_planned_or_refused_for_a_true_reason(tmp_path):
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
            text = plan(str(tmp_path / family))
        kind = next((kind for kind in KINDS if re.match(rf"model \S+: {kind}: ", text)), text)
        counts[kind] = counts.get(kind, 0) + 1
        if text != "planned" and (kind not in KINDS or not fails_by_itself(config)):
            wrong[family] = text
    assert not wrong
    assert counts.keys() <= {"planned", "no default", *KINDS}
    built = counts["planned"] + counts["a step of it cannot be traced"]  # what transformers itself can build
    assert counts["planned"] >= 0.9 * built >= 0.9 * 150, counts
