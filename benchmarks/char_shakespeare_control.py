"""What nanoGPT's own model and training protocol end at, where its README prints a validation loss of 1.88.

The exhibit extra_char_shakespeare trains our GPT-2 with those settings and measures the loss over the whole validation text.
nanoGPT draws 240 windows of it. So this script trains nanoGPT's model.py with nanoGPT's protocol (4 layers, 4 heads, width
128, block 64, batch 12, 2,000 steps, torch.optim.AdamW) and prints both: the loss over the whole text, and mean and standard
deviation of 60 estimates from 240 windows each.

Neither file is part of this repository: model.py stands in github.com/karpathy/nanoGPT, input.txt in
github.com/karpathy/char-rnn (data/tinyshakespeare).

    python benchmarks/char_shakespeare_control.py --nanogpt model.py --text input.txt --seed 1337
"""

import argparse
import importlib.util
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

BATCH, BLOCK, STEPS, WARMUP, HIGH, LOW = 12, 64, 2000, 100, 1e-3, 1e-4


def rate(step: int) -> float:
    """nanoGPT's schedule: linear warm-up, then a cosine to a tenth."""
    if step < WARMUP:
        return HIGH * (step + 1) / (WARMUP + 1)
    return LOW + 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) * (HIGH - LOW)


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (N, BLOCK) from each of N starts in a text (T,), and those that follow each of them, (N, BLOCK)."""
    rows = starts[:, None] + torch.arange(BLOCK)
    return text[rows], text[rows + 1]


def draw(text: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of BATCH windows at random places, as nanoGPT draws it."""
    return windows(text, torch.randint(len(text) - BLOCK, (BATCH,)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="PATH", help="nanoGPT's model.py")
    parser.add_argument("--text", type=Path, required=True, metavar="PATH", help="tinyshakespeare's input.txt")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    for path in (arguments.nanogpt, arguments.text):
        if not path.is_file():
            print(f"{path} is not a file; see --help for where it stands", file=sys.stderr)
            return 2
    spec = importlib.util.spec_from_file_location("nanogpt", arguments.nanogpt)
    sys.modules["nanogpt"] = nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)

    text = arguments.text.read_text()
    known = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([known[character] for character in text])
    train, held_out = tokens[: int(0.9 * len(tokens))], tokens[int(0.9 * len(tokens)) :]
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    shape = dict(vocab_size=len(known), n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False)
    model = nanogpt.GPT(nanogpt.GPTConfig(block_size=BLOCK, **shape))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=HIGH, betas=(0.9, 0.99))

    started = time.perf_counter()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        _, loss = model(*draw(train))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started

    model.eval()
    with torch.no_grad():
        starts = torch.arange(0, len(held_out) - BLOCK, BLOCK)
        whole = statistics.fmean(float(model(*windows(held_out, s[None]))[1]) for s in starts)
        estimates = [statistics.fmean(float(model(*draw(held_out))[1]) for _ in range(20)) for _ in range(60)]
    print("| seed | whole validation text | 240 windows, mean | standard deviation | smallest of 60 | seconds |")
    print("|---|---|---|---|---|---|")
    numbers = (whole, statistics.fmean(estimates), statistics.stdev(estimates), min(estimates))
    print(f"| {arguments.seed} | {' | '.join(f'{x:.3f}' for x in numbers)} | {seconds:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
