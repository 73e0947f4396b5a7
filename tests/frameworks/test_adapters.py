"""The adapters of the real PEFT: all are placed, and heads stay whole in what queries add to."""

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lowmem.optim import AdamMini

pytestmark = pytest.mark.slow

HEADS, KEY_HEADS, WIDTH = 4, 2, 32
ON = dict(target_modules=["q_proj", "k_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
KINDS = {
    "adalora": (peft.AdaLoraConfig(**ON, init_r=3, target_r=2, total_step=10, tinit=1, tfinal=1), "lora_B"),
    "loha": (peft.LoHaConfig(**ON, r=3), "hada_w1_a"),
    "lokr": (peft.LoKrConfig(**ON, r=3), None),
    "oft": (peft.OFTConfig(**ON, oft_block_size=4), None),
    "boft": (peft.BOFTConfig(**ON, boft_block_size=4), None),
    "hra": (peft.HRAConfig(**ON, r=4), None),
    "miss": (peft.MissConfig(**ON, r=4), "miss_block"),
    "randlora": (peft.RandLoraConfig(**ON, r=4), None),
    "c3a": (peft.C3AConfig(**ON, block_size=4), None),
    "vera": (peft.VeraConfig(**ON, r=4), None),
    "dora": (peft.LoraConfig(**ON, r=3, use_dora=True), "lora_B"),
    "prompt": (peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, task_type="CAUSAL_LM"), None),
    "tokens": (peft.TrainableTokensConfig(token_indices=[1, 2, 3], target_modules=["embed_tokens"]), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_adam_mini_trains_every_adapter(kind):
    torch.manual_seed(0)
    settings, by_heads = KINDS[kind]
    shape = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, vocab_size=64)
    base = LlamaForCausalLM(LlamaConfig(num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, **shape))
    model = peft.get_peft_model(base, settings)
    optimizer = AdamMini(model, lr=1e-2)
    tokens = torch.arange(16).view(2, 8)
    losses = []
    for _ in range(15):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, p in model.named_parameters():
        if p.requires_grad and by_heads and f"_proj.{by_heads}" in name:
            want = {"q": HEADS, "k": KEY_HEADS, "v": WIDTH // 2, "d": WIDTH}[name.split("_proj")[0].rsplit(".")[-1][0]]
            assert optimizer.blocks(p).count == want, name
