"""A plain training loop in the manner of nanoGPT, with Adam-mini.

python examples/nanogpt.py                                  one process
torchrun --nproc-per-node 2 examples/nanogpt.py             DistributedDataParallel, half of each batch per process
"""

import contextlib
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lowmem.models import gpt2
from lowmem.optim import AdamMini

STEPS, BATCH, MICRO_BATCHES = 20, 16, 2
many = int(os.environ.get("WORLD_SIZE", 1)) > 1
if many:
    dist.init_process_group("gloo")  # "nccl" on GPUs
rank, world = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)

torch.manual_seed(0)
model = gpt2.build(n_layer=2, n_head=2, n_embd=32, vocab_size=16, block_size=16)
optimizer = AdamMini(model, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, no_decay=lambda name, p: p.ndim < 2)
net = DistributedDataParallel(model) if many else model
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for step in range(STEPS):
    start = torch.randint(16, (BATCH, 1), generator=torch.Generator().manual_seed(step))
    tokens = ((start + torch.arange(17)) % 16)[rank::world]  # counting upwards, from anywhere
    parts = tokens.chunk(MICRO_BATCHES)
    for i, part in enumerate(parts):  # gradients are sent after the last micro-batch only
        wait = net.no_sync() if many and i < len(parts) - 1 else contextlib.nullcontext()
        with wait:
            loss = net(part[:, :-1], part[:, 1:]) / len(parts)
            loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(), optimizer.zero_grad(), schedule.step()
    if rank == 0:
        print(f"step {step} loss {loss.item() * len(parts):.4f}")
