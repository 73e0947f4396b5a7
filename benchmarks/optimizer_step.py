"""Time of one optimizer step against torch's fused AdamW and the public packages, and LOMO against plain training.

    python benchmarks/optimizer_step.py                # everything, about ten minutes on two cores
    python benchmarks/optimizer_step.py --only step    # or rules, codes, lomo

Every comparison happens in one process, in turn, on the same parameters and gradients; the tables show medians of the
round-by-round ratios, with the lowest and highest round. Each table has a process of its own, as training would: memory
that an earlier one left behind spares plain training its page faults. Packages that are not installed leave their row out.
"""

import argparse
import importlib
import subprocess
import sys
import time
import warnings

import torch
from timing import machine, ratios, table

from lowmem import optim
from lowmem.memory.measured_peak import in_turn
from lowmem.models import gpt2, llama

warnings.filterwarnings("ignore")
GPT2_NAMES = dict(dim=768, n_heads=12, n_kv_heads=12)  # what the official constructor needs


def package(module: str, name: str):
    """A class of an optional package, or None."""
    try:
        return getattr(importlib.import_module(module), name)
    except Exception:
        return None


def with_gradients(model: torch.nn.Module) -> torch.nn.Module:
    """The model with random gradients of a plausible size."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return model


def steps(count: int, device: str) -> str:
    """Adam-mini and AdamW on 124 M GPT-2-shaped fp32 parameters."""
    model = with_gradients(gpt2.build("125m").to(device))
    base = "torch.optim.AdamW(fused=True)"
    optimizers = {
        base: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True),
        "lowmem AdamMini": optim.AdamMini(model, lr=1e-6),
        "lowmem AdamW": optim.AdamW(model, lr=1e-6),
    }
    if official := package("adam_mini", "Adam_mini"):
        optimizers["adam-mini (official)"] = official(model.named_parameters(), lr=1e-6, verbose=False, **GPT2_NAMES)
    first = time.perf_counter()
    optimizers["lowmem AdamMini"].step()
    first = time.perf_counter() - first
    seconds = in_turn({name: optimizer.step for name, optimizer in optimizers.items()}, count)
    rows = [row(seconds, name, base) for name in optimizers]
    if official:
        low = ratios(seconds, "lowmem AdamMini", "adam-mini (official)")
        rows.append(("lowmem AdamMini / official", "", show(low)))
    text = table(rows, ("optimizer step, 124 M fp32", "median ms", "ratio to fused AdamW (lowest to highest)"))
    return f"{text}\n\nFirst step of AdamMini with building or loading its kernel: {first:.2f} s."


def rules(count: int, device: str) -> str:
    """Every other rule against its public package on 124 M GPT-2-shaped fp32 parameters, at equal settings."""
    publics = {  # module, class, and what makes its settings those of ours
        "Lion": ("lion_pytorch", "Lion", {}),
        "CAME": ("came_pytorch", "CAME", {}),
        "Adafactor": ("torch.optim", "Adafactor", {"weight_decay": 0.0}),
        "SGD": ("torch.optim", "SGD", {}),
        "Lamb": ("pytorch_optimizer", "Lamb", {"max_grad_norm": 0.0}),
        "SM3": ("pytorch_optimizer", "SM3", {"momentum": 0.9}),
    }
    rows = []
    for name, (module, public_name, settings) in publics.items():
        public = package(module, public_name)
        if public is None:
            continue
        model = with_gradients(gpt2.build("125m").to(device))
        ours, theirs = getattr(optim, name)(model, lr=1e-6), public(model.parameters(), lr=1e-6, **settings)
        label = f"{public.__module__.split('.')[0]} {public_name}"
        seconds = in_turn({name: ours.step, label: theirs.step}, count)
        rows.append(row(seconds, f"{name}", label)[:2] + (label, show(ratios(seconds, name, label))))
    return table(rows, ("rule, 124 M fp32", "median ms", "against", "ratio (lowest to highest)"))


def codes(count: int, device: str) -> str:
    """First moments in 8-bit codes beside fp32 ones, on 124 M GPT-2-shaped fp32 parameters."""
    rows = []
    for name in ("AdamMini", "AdamW", "Lion"):
        model, rule, base = with_gradients(gpt2.build("125m").to(device)), getattr(optim, name), f"{name}, fp32 moment"
        coded = rule(model, lr=1e-6, state_dtype="int8")
        functions = {base: rule(model, lr=1e-6).step, f"{name}, 8-bit moment": coded.step}
        seconds = in_turn(functions, count)
        rows += [row(seconds, label, base) for label in functions]
    return table(rows, ("optimizer step, 124 M fp32", "median ms", "ratio to the fp32 moment (lowest to highest)"))


def lomo(count: int, device: str) -> str:
    """A whole training step of a 110 M Llama: plain with fused SGD, LOMO one pass, grouped clipping, two passes."""
    shape = dict(n_layer=12, n_head=12, n_embd=768, n_hidden=2048, vocab_size=16000, block_size=256)
    tokens = torch.randint(16000, (2, 129), device=device)

    def loss_of(model):
        return model(tokens[:, :-1], tokens[:, 1:])

    base = "forward, backward, torch SGD(fused=True)"
    functions = {}

    def plain():
        torch.manual_seed(0)
        model = llama.build(**shape).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, fused=True)

        def run():
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    def fused(**settings):
        torch.manual_seed(0)
        model = llama.build(**shape).to(device)
        optimizer = optim.Lomo(model, lr=1e-6, **settings)

        def run():
            optimizer.backward(loss_of(model))
            optimizer.step()

        return run

    functions[base] = plain()
    functions["Lomo, no clipping"] = fused()
    functions["Lomo, one-pass grouped clipping"] = fused(grouped_norm=1.0)
    functions["Lomo, two-pass norm clipping (graph kept)"] = fused(max_grad_norm=1.0)
    if official := package("lomo_optim", "Lomo"):
        functions["lomo-optim (official), no clipping"] = official_lomo(official, shape, loss_of, device)
    seconds = in_turn(functions, count)
    rows = [row(seconds, name, base) for name in functions]
    return table(
        rows, ("training step, 110 M Llama, fp32, 2 x 128 tokens", "median ms", "ratio to plain (lowest to highest)")
    )


def official_lomo(official, shape: dict, loss_of, device: str):
    torch.manual_seed(0)
    model = llama.build(**shape).to(device)
    optimizer = official(model, lr=1e-6)

    def run():
        optimizer.fused_backward(loss_of(model), 1e-6)

    return run


def row(seconds: dict, name: str, base: str) -> tuple:
    middle = sorted(seconds[name])[len(seconds[name]) // 2]
    return (name, f"{1000 * middle:.1f}", "1" if name == base else show(ratios(seconds, name, base)))


def show(ratio: tuple[float, float, float]) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"


PARTS = {"step": steps, "rules": rules, "codes": codes, "lomo": lomo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.only is None:
        for name in PARTS:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", name], check=True)
        return
    torch.set_num_threads(arguments.threads)
    print(machine(), PARTS[arguments.only](arguments.rounds, arguments.device), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
