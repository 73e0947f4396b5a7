"""LoRA by PEFT: only the adapters train, with Adam-mini or with LOMO inside backward.

sh examples/environment.sh frameworks
.venv/frameworks/bin/python examples/lora.py [adam_mini | lomo]
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import lowmem
from lowmem.optim import AdamMini, Lomo

name = sys.argv[1] if len(sys.argv) > 1 else "adam_mini"
torch.manual_seed(0)
shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=16, max_position_embeddings=32, **shape))
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
print(lowmem.partition(model))  # frozen weights have no blocks
optimizer = AdamMini(model, lr=1e-2) if name == "adam_mini" else Lomo(model, lr=1.0, max_grad_norm=1.0)
for step in range(30):
    start = torch.randint(16, (16, 1), generator=torch.Generator().manual_seed(step))
    tokens = (start + torch.arange(17)) % 16
    loss = model(input_ids=tokens, labels=tokens).loss
    if name == "adam_mini":
        loss.backward()
    else:
        optimizer.backward(loss)
    optimizer.step(), optimizer.zero_grad()
    print(f"step {step} loss {loss.item():.4f}")
