"""Full fine-tuning of a 7B model on one card of 24 GB: bf16 weights (2 bytes), Adam-mini inside backward with a first moment
in 8 bits (1 byte) and no gradients kept, their global norm clipped, layers recomputed in backward.

python examples/finetune_7b_24gb.py MODEL TEXT FOLDER [STEPS] [TOKENS]

MODEL: a Hugging Face name or folder. TEXT: a file to learn. FOLDER: for checkpoints; started again, it goes on from the last.
What fits: lowmem plan llama2-7b --optimizer adam_mini+backward --state int8 --gpu rtx-4090 --checkpointing
"""

import os
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowmem.optim import AdamMini, FusedBackward

RATE, WARMUP, EVERY = 1e-5, 20, 500  # steps of warm-up, steps from one checkpoint to the next
len(sys.argv) > 3 or sys.exit(__doc__)
name, text, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
steps, length = (int(x) for x in (*sys.argv[4:], *("1000", "2048")[len(sys.argv) - 4 :]))
device = "cuda" if torch.cuda.is_available() else "cpu"


def save(step: int) -> None:
    """A whole folder or none: it has its name once everything is in it; then the one before goes."""
    unfinished = folder / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    torch.save({"step": step, "optimizer": optimizer.state_dict()}, unfinished / "training.pt")
    os.replace(unfinished, folder / f"step{step:06}")
    for old in sorted(folder.glob("step*"))[:-1]:
        shutil.rmtree(old)


last = max(folder.glob("step*"), default=None)
data = torch.tensor(AutoTokenizer.from_pretrained(name)(text.read_text(encoding="utf-8"))["input_ids"])
if len(data) < length:
    sys.exit(f"{text} has {len(data)} tokens and a step takes {length}: give a longer text, or fewer TOKENS")
model = AutoModelForCausalLM.from_pretrained(last or name, dtype=torch.bfloat16).to(device).train()
model.gradient_checkpointing_enable({"use_reentrant": False})
rule = AdamMini(model, lr=RATE, betas=(0.9, 0.95), state_dtype="int8", rounding="stochastic")
optimizer, done = FusedBackward(rule, max_grad_norm=1.0), 0
if last:
    saved = torch.load(last / "training.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    done = saved["step"]
for step in range(done, steps):
    torch.manual_seed(step)  # decides batch and rounding, so that no other random state need be kept
    start = torch.randint(len(data) - length + 1, ())
    tokens = data[start : start + length].unsqueeze(0).to(device)
    for group in optimizer.param_groups:
        group["lr"] = RATE * min(1, (step + 1) / WARMUP)
    loss = optimizer.backward(model(input_ids=tokens, labels=tokens, use_cache=False).loss)
    optimizer.step()
    print(f"step {step} loss {loss.item():.4f}", flush=True)
    if (step + 1) % EVERY == 0 or step + 1 == steps:
        save(step + 1)
