"""nanoGPT's README prints a validation loss of 1.88 for its CPU configuration: what was measured, and what ours is there.

nanoGPT prints the mean loss over 240 random windows of the validation text (seed 1337); the exhibit
extra_char_shakespeare measures the whole of it. This script repeats nanoGPT's protocol with every random draw in its
order (4 layers, 4 heads, width 128, block 64, batch 12, 2,000 steps; 20 + 20 batches every 250 steps), for nanoGPT's
model.py with torch.optim.AdamW, and for our GPT-2 with our AdamW or Adam-mini: the same batches, the same 240 windows. It
prints the loss over these, over the whole text, and the standard deviation of 60 estimates from 240 other windows each.

Neither file is part of this repository: model.py stands in github.com/karpathy/nanoGPT, input.txt in
github.com/karpathy/char-rnn (data/tinyshakespeare).

    python benchmarks/char_shakespeare_control.py --nanogpt model.py --text input.txt
    python benchmarks/char_shakespeare_control.py --nanogpt model.py --text input.txt --ours adamw --init-seed 0
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

from lowmem import optim
from lowmem.models import gpt2

BATCH, BLOCK, STEPS, WARMUP, HIGH, LOW = 12, 64, 2000, 100, 1e-3, 1e-4
EVAL_EVERY, EVAL_BATCHES = 250, 20
SHAPE = {"vocab_size": 65, "block_size": BLOCK, "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0, "bias": False}


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


def last_starts(train: int, held_out: int) -> Tensor:
    """Where the 240 windows of the last estimate start in a validation text of that many characters, (240,)."""

    def places(length: int, batches: int) -> Tensor:
        return torch.cat([torch.randint(length - BLOCK, (BATCH,)) for _ in range(batches)])

    places(train, 1)
    for step in range(STEPS + 1):
        if step % EVAL_EVERY == 0:
            places(train, EVAL_BATCHES)
            found = places(held_out, EVAL_BATCHES)
        places(train, 1)
    return found


def nanogpts_model(path: Path) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """nanoGPT's GPT and its optimizer: matrices decay, norms do not."""
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    sys.modules["nanogpt"] = nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    model = nanogpt.GPT(nanogpt.GPTConfig(**SHAPE))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=HIGH, betas=(0.9, 0.99))


def our_model(optimizer: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Our GPT-2 at the settings of workflow/config/experiments/char_shakespeare.yaml, and our optimizer."""
    settings = dict(lr=HIGH, betas=[0.9, 0.99], eps=1e-8, weight_decay=0.1, no_decay=["*norm*"])
    model = gpt2.GPT2(gpt2.Config(**SHAPE))
    return model, optim.make(model, name=optimizer, **settings)


def loss_of(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy in nats; nanoGPT's model gives it beside its logits."""
    result = model(*batch)
    return result[1] if isinstance(result, tuple) else result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="PATH", help="nanoGPT's model.py")
    parser.add_argument("--text", type=Path, required=True, metavar="PATH", help="tinyshakespeare's input.txt")
    parser.add_argument("--seed", type=int, default=1337, help="of nanoGPT's draws (default: its own, 1337)")
    parser.add_argument("--ours", choices=("adamw", "adam_mini"), help="train our GPT-2 with this optimizer instead")
    parser.add_argument("--init-seed", type=int, help="of the first weights (default: nanoGPT's own, 0 for our model)")
    parser.add_argument("--starts", action="store_true", help="print where nanoGPT's last 240 windows start, and end")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    for path in (arguments.nanogpt, arguments.text):
        if not path.is_file():
            print(f"{path} is not a file; see --help for where it stands", file=sys.stderr)
            return 2

    text = arguments.text.read_text()
    known = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([known[character] for character in text])
    train, held_out = tokens[: int(0.9 * len(tokens))], tokens[int(0.9 * len(tokens)) :]
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    model, optimizer = nanogpts_model(arguments.nanogpt)  # also for ours: its first weights take random numbers
    if arguments.starts:
        print(*last_starts(len(train), len(held_out)).tolist(), sep=", ")
        return 0
    seed = arguments.init_seed
    with torch.random.fork_rng():  # the draws after this stay nanoGPT's
        if arguments.ours:
            torch.manual_seed(seed or 0)
            model, optimizer = our_model(arguments.ours)
        elif seed is not None:
            torch.manual_seed(seed)
            model, optimizer = nanogpts_model(arguments.nanogpt)

    def estimate() -> float:
        """Mean loss over 240 windows of the validation text; nanoGPT draws as many of the training text before."""
        model.eval()
        with torch.no_grad():
            for _ in range(EVAL_BATCHES):
                draw(train)
            loss = statistics.fmean(float(loss_of(model, draw(held_out))) for _ in range(EVAL_BATCHES))
        model.train()
        return loss

    started = time.perf_counter()
    batch = draw(train)
    for step in range(STEPS):
        if step % EVAL_EVERY == 0:
            estimate()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = loss_of(model, batch)
        batch = draw(train)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    printed = estimate()
    seconds = time.perf_counter() - started

    model.eval()
    with torch.no_grad():
        starts = BLOCK * torch.arange(1740)  # as in the exhibit
        whole = statistics.fmean(float(loss_of(model, windows(held_out, s))) for s in starts.split(60))
        others = [
            statistics.fmean(float(loss_of(model, draw(held_out))) for _ in range(EVAL_BATCHES)) for _ in range(60)
        ]
    print(
        "| model | first weights | nanoGPT's 240 windows | whole validation text | deviation of 60 others | seconds |"
    )
    print("|---|---|---|---|---|---|")
    name = f"our GPT-2, our {arguments.ours}" if arguments.ours else "nanoGPT"
    name += f" | {seed or 0}" if arguments.ours or seed is not None else " | its own"
    print(f"| {name} | {printed:.4f} | {whole:.4f} | {statistics.stdev(others):.4f} | {seconds:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
