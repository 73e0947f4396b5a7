"""FSDP2 (fully_shard) with Adam-mini, or with LOMO inside backward; saved, and continued by any number of processes.

torchrun --nproc-per-node 2 examples/fsdp2.py [adam_mini | lomo] [FOLDER]       again, perhaps with 3: it continues
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from lowmem.models import llama
from lowmem.optim import AdamMini, Lomo
from lowmem.training import sharded_checkpoint

"RANK" in os.environ or sys.exit(__doc__)
dist.init_process_group("gloo")  # "nccl" on GPUs
name, folder = (*sys.argv[1:3], *("adam_mini", None)[len(sys.argv) - 1 :])
policy = CPUOffloadPolicy() if torch.cuda.is_available() else OffloadPolicy()  # weights, gradients, state in CPU memory
torch.manual_seed(0)
model = llama.build(n_layer=2, n_head=2, n_embd=32, n_hidden=64, vocab_size=16, block_size=16)
for part in (*model.blocks, model):  # first shard, then build the optimizer
    fully_shard(part, offload_policy=policy)
optimizer = AdamMini(model, lr=3e-3) if name == "adam_mini" else Lomo(model, lr=0.3, max_grad_norm=1.0)
done = (sharded_checkpoint.load(folder, model, optimizer) if folder else None) or {"step": 0}
for step in range(done["step"], done["step"] + 10):
    start = torch.randint(16, (12, 1), generator=torch.Generator().manual_seed(step))
    tokens = ((start + torch.arange(17)) % 16)[dist.get_rank() :: dist.get_world_size()]
    if name == "adam_mini":
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    else:  # the clip norm needs two passes, so a function that computes the loss
        loss = optimizer.backward(lambda tokens=tokens: model(tokens[:, :-1], tokens[:, 1:]))
    dist.all_reduce(mean := loss.detach() / dist.get_world_size())
    optimizer.step(), optimizer.zero_grad()
    dist.get_rank() or print(f"step {step} loss {mean.item():.4f}")
if folder:
    sharded_checkpoint.save(folder, step + 1, model, optimizer)
