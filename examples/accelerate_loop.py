"""Accelerate with Adam-mini (accumulation and clipping by Accelerate) or with LOMO inside backward.

sh examples/environment.sh frameworks
.venv/frameworks/bin/python examples/accelerate_loop.py [adam_mini | lomo]
"""

import sys

import torch
from accelerate import Accelerator

from lowmem.models import gpt2
from lowmem.optim import AdamMini, Lomo

name = sys.argv[1] if len(sys.argv) > 1 else "adam_mini"
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2 if name == "adam_mini" else 1)
torch.manual_seed(0)
model = gpt2.build(n_layer=2, n_head=2, n_embd=32, vocab_size=16, block_size=16)
if name == "adam_mini":
    model, optimizer = accelerator.prepare(model, AdamMini(model, lr=3e-3))
else:  # Accelerate need not know LOMO; on several processes, give it process_group and leave the model out too
    optimizer = Lomo(model, lr=0.3, max_grad_norm=1.0)
for step in range(40):
    start = torch.randint(16, (16, 1), generator=torch.Generator().manual_seed(step))
    tokens = ((start + torch.arange(17)) % 16).to(accelerator.device)
    with accelerator.accumulate(model):
        loss = model(tokens[:, :-1], tokens[:, 1:])
        if name == "adam_mini":
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
        else:
            optimizer.backward(loss)  # in place of accelerator.backward
        optimizer.step()
        optimizer.zero_grad()
    accelerator.print(f"step {step} loss {loss.item():.4f}")
