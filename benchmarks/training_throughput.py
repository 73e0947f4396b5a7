"""Training throughput of our GPT-2 + AdamW against nanoGPT's model + torch.optim.AdamW(fused=True), side by side.

Both train on the same random tokens with the same shape, precision, gradient clipping and compilation setting, in
turns within one process, so that a change in the machine's load meets both. Printed: the median step, tokens per second
and the median of the ratios of neighbouring turns, as a Markdown table.

nanoGPT's model.py is not part of this repository. It stands in the public repository github.com/karpathy/nanoGPT:
download that one file and name it with --nanogpt.

    python benchmarks/training_throughput.py --nanogpt model.py
"""

import argparse
import contextlib
import importlib.util
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lowmem import optim
from lowmem.models import gpt2
from lowmem.training import machine

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 4096, "block_size": 256}  # 4.26 M parameters
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}


def main() -> int:
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--nanogpt", type=Path, metavar="PATH", help="nanoGPT's model.py; without it only ours is timed"
    )
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), default="bf16", help="bf16 is autocast, weights are fp32"
    )
    parser.add_argument("--no-compile", action="store_true", help="eager, without torch.compile")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each side")
    parser.add_argument("--steps", type=int, default=5, help="steps per turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.nanogpt and not arguments.nanogpt.is_file():
        print(f"{arguments.nanogpt} is not a file; download model.py of github.com/karpathy/nanoGPT", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = {name: getattr(arguments, name) for name in SHAPE}
    sides = {"lowmem gpt2 + AdamW": ours(shape, arguments)}
    if arguments.nanogpt:
        sides["nanoGPT + torch AdamW(fused)"] = theirs(shape, arguments)
    losses = {name: [step() for _ in range(3)][-1] for name, step in sides.items()}  # compiles
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(arguments.rounds):
        for name in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
            times[name].append(statistics.median(timed(sides[name]) for _ in range(arguments.steps)))
    report(shape, arguments, times, losses)
    return 0


def ours(shape: dict, arguments) -> Callable[[], float]:
    """A step of this package's model and optimizer."""
    model = gpt2.build(**shape, bias=False)
    return stepper(model, lambda x, y: model(x, y), optim.make(model, name="adamw", **ADAMW), arguments)


def theirs(shape: dict, arguments) -> Callable[[], float]:
    """A step of nanoGPT's model and torch's fused AdamW, as its own train.py builds them."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", arguments.nanogpt)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(module.GPTConfig(**shape, bias=False, dropout=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **ADAMW)
    return stepper(model, lambda x, y: model(x, y)[1], optimizer, arguments)


def stepper(model, loss_of: Callable, optimizer, arguments) -> Callable[[], float]:
    """step() -> loss: forward, backward, clipping by the global norm, update, on fresh random tokens."""
    if not arguments.no_compile:
        model.compile()
    generator = torch.Generator().manual_seed(1)
    size = (arguments.batch, arguments.block_size + 1)

    def step() -> float:
        tokens = torch.randint(arguments.vocab_size, size, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = loss_of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    step.parameters = sum(p.numel() for p in model.parameters())
    return step


def timed(step: Callable) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def report(shape: dict, arguments, times: dict, losses: dict) -> None:
    """The Markdown table, and what it was measured on."""
    device = machine.describe("cpu")
    flags = ", ".join(device["flags"]) or "no flags known"
    how = f"{arguments.precision}, {'eager' if arguments.no_compile else 'compiled'}"
    print(f"\nShape {shape}, batch {arguments.batch} x {arguments.block_size}, {how}, {arguments.rounds} turns of")
    print(f"{arguments.steps} steps each; {device['name']}, {device['threads']} of {device['cores']} cores, {flags};")
    print(f"torch {torch.__version__}, load average at the end {os.getloadavg()[0]:.1f}.\n")
    print("| | step, median ms | lowest turn | tokens/s | loss after 3 steps |\n|---|---|---|---|---|")
    tokens = arguments.batch * arguments.block_size
    for name, turns in times.items():
        middle = statistics.median(turns)
        print(f"| {name} | {1e3 * middle:.1f} | {1e3 * min(turns):.1f} | {tokens / middle:,.0f} | {losses[name]:.3f} |")
    if len(times) == 2:
        own, other = times.values()
        ratios = sorted(b / a for a, b in zip(own, other))
        print(f"\nOurs is {statistics.median(ratios):.2f} x as fast (turns: {ratios[0]:.2f} to {ratios[-1]:.2f}).")


if __name__ == "__main__":
    sys.exit(main())
