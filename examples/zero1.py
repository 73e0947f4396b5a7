"""Optimizer state split over data-parallel processes (ZeRO stage 1) without DeepSpeed, for any rule with step().

torchrun --nproc-per-node 2 examples/zero1.py
"""

import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lowmem.models import gpt2
from lowmem.optim import AdamMini, Zero1

if "RANK" not in os.environ:
    sys.exit(__doc__)
dist.init_process_group("gloo")  # "nccl" on GPUs
torch.manual_seed(0)
model = gpt2.build(n_layer=2, n_head=2, n_embd=32, vocab_size=16, block_size=16)
net = DistributedDataParallel(model)
optimizer = Zero1(AdamMini(model, lr=3e-3))  # without DDP: Zero1(..., average=True)
for step in range(20):
    start = torch.randint(16, (16, 1), generator=torch.Generator().manual_seed(step))
    tokens = ((start + torch.arange(17)) % 16)[dist.get_rank() :: dist.get_world_size()]
    loss = net(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(), optimizer.zero_grad()
    if dist.get_rank() == 0:
        print(f"step {step} loss {loss.item():.4f}")
whole = optimizer.state_dict()  # every process calls it; loads at any number of processes, also without Zero1
if dist.get_rank() == 0:
    print(f"{optimizer.state_bytes()} bytes of state on this process")
dist.destroy_process_group()
time.sleep(0.5)  # gloo's threads let go of their tensors meanwhile; a process that ends before is aborted
