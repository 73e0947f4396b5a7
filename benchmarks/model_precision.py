"""Training step of small Llamas on a CPU: eager and compiled, fp32 and bf16 autocast, and whether the losses agree.

    python benchmarks/model_precision.py                    # all sizes, about ten minutes on one core
    python benchmarks/model_precision.py --only 1M --steps 30 --json precision.json

Forward, loss, backward, clipping and Adam-mini on 4,096 tokens a step. All kinds train in one process, in turn, on the same
batches from the same weights; the table shows medians of the round-by-round ratios. Text: the Python source of the installed
PyTorch, its 94 commonest bytes. "Scatter" is the standard deviation of the final loss over seeds, eager in fp32: a kind whose
loss differs by less changes nothing that an experiment could see. Warm-up: until the second step is done. All times are CPU
time of the process and of the compilers it starts, so that other work on the machine counts little.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from timing import machine, ratios, table

from lowmem.models import llama
from lowmem.optim import AdamMini

SIZES = {  # 20 tokens per parameter in 500 to 5,000 steps
    "0.1M": dict(n_layer=2, n_head=4, n_embd=48, n_hidden=256, block_size=64),
    "0.3M": dict(n_layer=4, n_head=4, n_embd=80, n_hidden=216, block_size=128),
    "1M": dict(n_layer=4, n_head=4, n_embd=128, n_hidden=448, block_size=128),
}
TOKENS, SYMBOLS, SEEDS = 4096, 94, 3
BASE = "eager fp32"
KINDS = {
    BASE: (False, False),
    "compiled fp32": (True, False),
    "eager bf16": (False, True),
    "compiled bf16": (True, True),
}


def compiling_seconds() -> float:
    """CPU time so far, with that of the compilers that were started."""
    return sum(os.times()[:4])


def text() -> np.ndarray:
    """Bytes of PyTorch's own Python files as symbols 0 ... 93; rarer bytes are the last symbol."""
    files = sorted(Path(torch.__file__).parent.joinpath("nn").rglob("*.py"))
    content = np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8)
    common = np.argsort(-np.bincount(content, minlength=256), kind="stable")[:SYMBOLS]
    numbers = np.full(256, SYMBOLS - 1)
    numbers[common] = np.arange(SYMBOLS)
    return numbers[content]


def trainer(shape: dict, compiled: bool, bf16: bool, seed: int, tokens: np.ndarray):
    """(model, step): step() trains on the next batch and returns its loss."""
    torch.manual_seed(seed)
    model, length = llama.build(vocab_size=SYMBOLS, **shape), shape["block_size"]
    optimizer = AdamMini(model, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    if compiled:
        model.compile()
    draw = np.random.default_rng(seed)

    def step() -> float:
        starts = draw.integers(len(tokens) - length - 1, size=TOKENS // length)
        windows = torch.from_numpy(tokens[starts[:, None] + np.arange(length + 1)])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(windows[:, :-1], windows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return model, step


def measure(size: str, steps: int) -> dict:
    """Every kind of one size: {parameters, kinds: {name: {median_ms, ratio, warm_up_s, loss, off}}, scatter}."""
    tokens, shape = text(), SIZES[size]
    kinds = {name: trainer(shape, *kind, 0, tokens) for name, kind in KINDS.items()}
    others = [trainer(shape, False, False, seed, tokens) for seed in range(1, SEEDS)]
    losses: dict = {name: [] for name in kinds}
    seconds: dict = {name: [] for name in kinds}
    warm_up = {}
    for name, (_, step) in kinds.items():  # one after the other, so that nobody waits for another's compiler
        started = compiling_seconds()
        losses[name] += [step(), step()]
        warm_up[name] = compiling_seconds() - started
    for _ in range(steps - 2):
        for name, (_, step) in kinds.items():
            started = time.process_time()
            losses[name].append(step())
            seconds[name].append(time.process_time() - started)
    ends = [statistics.fmean(losses[BASE][-10:])]
    ends += [statistics.fmean([step() for _ in range(steps)][-10:]) for _, step in others]
    made = {}
    for name in kinds:
        middle, low, high = ratios(seconds, name, BASE)
        made[name] = {
            "median_ms": round(1000 * statistics.median(seconds[name]), 1),
            "ratio": [round(middle, 3), round(low, 3), round(high, 3)],
            "warm_up_s": round(warm_up[name], 1),
            "loss": round(statistics.fmean(losses[name][-10:]), 5),
            "off": round(statistics.fmean(losses[name][-10:]) - ends[0], 5),
        }
    parameters = sum(p.numel() for p in kinds[BASE][0].parameters())
    return {"parameters": parameters, "steps": steps, "scatter": round(statistics.stdev(ends), 5), "kinds": made}


def shown(size: str, found: dict) -> str:
    rows = []
    for name, row in found["kinds"].items():
        middle, low, high = row["ratio"]
        rows.append((name, row["median_ms"], f"{middle} ({low} to {high})", row["warm_up_s"], row["loss"], row["off"]))
    header = (
        f"Llama {size}, {found['parameters']:,} parameters",
        "median CPU ms",
        f"ratio to {BASE} (lowest to highest)",
        "warm-up CPU s",
        f"loss after {found['steps']} steps",
        "difference",
    )
    return table(rows, header) + f"\n\nScatter of the loss over {SEEDS} seeds: {found['scatter']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SIZES)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="add the numbers to this file")
    arguments = parser.parse_args()
    if arguments.only is None:
        for size in SIZES:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", size], check=True)
        return
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)  # else warm-up depends on what was compiled before
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # in this process, where its time is seen
        found = measure(arguments.only, arguments.steps)
    print(machine(), shown(arguments.only, found), sep="\n\n", end="\n\n")
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
        known.setdefault("machine", machine())
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**known, arguments.only: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
