"""Records of language-model runs: losses that fall, with a known offset for each method, rate and seed."""

import math
import random

from lowmem.pipeline import experiments

EXPERIMENTS = ("llama_scaling", "llama_large", "gpt2_baselines", "gpt2_decay", "llama_variants", "adafactor_sweeps")
EXPERIMENTS += ("llama_long", "leave_x_out", "backward_update", "char_shakespeare")
OFFSETS = {
    "adamw": 0.0,
    "adamw_twin": 0.0,
    "adam_mini": 0.004,
    "adam_mini_backward": 0.004,
    "adafactor": 0.05,
    "adafactor_zhai": 0.06,
}
OFFSETS |= {"came": 0.04, "sm3": 0.2, "lion": 0.03, "lamb": 0.07, "adalomo": 0.08, "default_partition": 0.3}
OFFSETS |= {"value_whole": -0.01, "embedding_whole": 0.1, "embedding_adam": 0.0, "max": 0.05, "min": 0.06, "l1": 0.07}
OFFSETS |= {"l2": 0.08, "adafactor_flags": 2.0, "zhai_flags": 2.1}
STEPS = 40


def write_everything(root, tier="laptop", offset=None):
    """Records of every run; offset(run) is added to its losses (default: by method, see OFFSETS)."""
    for experiment in EXPERIMENTS:
        write(root, experiment, tier, offset)


def write(root, experiment, tier="laptop", offset=None, steps=STEPS):
    from synthetic import record

    runs = experiments.runs(root, experiment, tier)
    rates, own = {}, {}
    for run in runs:
        rates.setdefault(method(run), set()).add(run["config"]["optimizer"]["lr"])
        if run["variant"].endswith("-own"):
            own[method(run)] = {run["config"]["optimizer"]["lr"]}
    for run in runs:
        extra = (offset or default_offset)(run) + off_rate(run, own.get(method(run), rates[method(run)]))
        lines = curve(run, extra, steps)
        tokens = lines[-1]["tokens"]
        final = {
            "val_loss": lines[-1]["val_loss"],
            "train_loss": lines[-1]["train_loss"],
            "step": steps,
            "tokens": tokens,
        }
        if "starts" in run["config"].get("measure", {}):
            final["starts_loss"] = lines[-1]["val_loss"] - 0.01
        inside = "backward" in run["config"]["optimizer"]
        memory = {"parameters": 400, "gradients": 0 if inside else 400, "optimizer_state": 800, "peak_rss": 1}
        memory["peak_device"] = None
        speed = {
            "tokens_per_s": 1e4,
            "step_ms": {"median": 10.0, "p10": 9.0, "p90": 11.0},
            "steps_s": 100.0,
            "run_s": 110.0,
        }
        record(root, run, final, lines, memory=memory, throughput=speed)


def method(run) -> str:
    """The part of a variant that names the method; optimizers of pairs stand last, of grids before the rate."""
    return next((part for part in run["variant"].split("-") if part in OFFSETS), run["variant"])


def default_offset(run) -> float:
    return OFFSETS.get(method(run), 0.01)


def off_rate(run, rates) -> float:
    """Nothing at the method's own rate or the middle of its grid, more beside it; nothing where rates have no effect."""
    if method(run).endswith("_flags"):
        return 0.0
    middle = sorted(rates)[len(rates) // 2]
    return 0.1 * math.log10(run["config"]["optimizer"]["lr"] / middle) ** 2


def curve(run, offset, steps):
    """Losses over `steps` lines, an evaluation at every second one; Adam-mini starts 0.03 behind and catches up."""
    noise = random.Random(run["seed"])  # equal for all methods of a seed: pairs cancel it
    own = random.Random(f"{run['id']}")
    lines = [{"step": 0, "tokens": 0, "val_loss": 5.5}]
    size = 0.02 * math.log(run["config"]["model"]["n_embd"])
    for step in range(1, steps + 1):
        loss = 2.5 + 2 * math.exp(-step / 10) + 0.1 * run["seed"] - size + offset + 0.02 * noise.random()
        loss += 0.03 * (1 - step / steps) * (method(run) == "adam_mini") + 0.0005 * own.random()
        line = {"step": step, "tokens": step * 1024, "train_loss": loss, "seconds": 0.01 * step}
        if step % 2 == 0:
            line["val_loss"] = loss
            if run["config"]["train"].get("sketch"):
                far = 1 + 5 * OFFSETS.get(method(run), 0)
                far = {"adamw": 0, "adamw_twin": 0.1}.get(method(run), far)
                line["sketch"] = [step * 1.0, far * step / steps]
        lines.append(line)
    return lines
