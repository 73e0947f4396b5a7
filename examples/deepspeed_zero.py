"""DeepSpeed ZeRO stage 1, 2 or 3 with Adam-mini as client optimizer.

sh examples/environment.sh frameworks; export DS_ACCELERATOR=cpu    (or a GPU: leave it out)
.venv/frameworks/bin/python -m torch.distributed.run --nproc-per-node 2 examples/deepspeed_zero.py [STAGE] [offload]
"""

import sys
import time

import deepspeed
import torch

from lowmem.integrations.deepspeed import ForDeepSpeed
from lowmem.models import gpt2
from lowmem.optim import AdamMini

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # on CPUs: it would compile for a minute; gloo will do
stage = int(sys.argv[1]) if len(sys.argv) > 1 else 2
config = {
    "train_micro_batch_size_per_gpu": 8,
    "gradient_clipping": 1.0,
    "zero_allow_untested_optimizer": True,  # any optimizer that DeepSpeed does not bring along
    "zero_force_ds_cpu_optimizer": False,  # with offload: ours has a CPU kernel of its own
    "zero_optimization": {"stage": stage},
}
if "offload" in sys.argv:
    config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
torch.manual_seed(0)
model = gpt2.build(n_layer=2, n_head=2, n_embd=32, vocab_size=16, block_size=16)
optimizer = ForDeepSpeed(AdamMini(model, lr=3e-3))  # before initialize, which flattens the parameters
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
optimizer.attach(engine)  # after it: finds the blocks in the flat tensors
for step in range(20):
    start = torch.randint(16, (16, 1), generator=torch.Generator().manual_seed(step))
    tokens = ((start + torch.arange(17)) % 16)[engine.global_rank :: engine.world_size].to(engine.device)
    loss = engine(tokens[:, :-1], tokens[:, 1:])
    engine.backward(loss), engine.step()
    if engine.global_rank == 0:
        print(f"step {step} loss {loss.item():.4f}")
time.sleep(0.5)  # gloo's threads let go of their tensors meanwhile; a process that ends before is aborted
