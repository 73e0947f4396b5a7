"""The sections of gpu_campaign.py: each takes a Setting and returns a dictionary, with "rows" {case: {what: value}}."""

import dataclasses
import functools
import gc
import importlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lowmem import optim
from lowmem.blocks import Partition, partition
from lowmem.memory import measured_peak, target_model
from lowmem.memory.accountant import TrainingSetup
from lowmem.models import llama
from lowmem.optim.core import gpu_step, gpu_tables

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(n_layer=2, n_head=2, n_embd=32, n_hidden=48, vocab_size=64, block_size=32)
MODELS = {
    "134M": dict(n_layer=12, n_head=12, n_embd=768, n_hidden=2048, vocab_size=32000, block_size=1024),
    "7B": "llama2-7b",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Counted (tests/optim, tests/gpu_kernels): (launches of a step of 134M, of 7B, bytes per element), by rule and precision.
COUNTED = {
    "torch fused AdamW fp32": (9, 325, 28.0),
    "torch fused AdamW bf16": (9, 325, 14.0),
    "torch foreach AdamW fp32": (56, 2576, 84.0),
    "official Adam-mini fp32": (1667, 4367, 68.0),
    "official Adam-mini bf16": (1667, 4367, 34.0),
    "AdamMini fp32": (5, 5, 20.6),
    "AdamMini bf16": (5, 5, 10.3),
    "AdamMini bf16 stochastic": (5, 5, 10.3),
    "AdamMini without Triton fp32": (250, 1243, 36.1),
    "AdamMini without Triton bf16": (359, 3549, 66.1),
    "AdamMini stages fp32": (1665, 4365, 36.1),
    "AdamMini stages bf16": (2220, 5820, 66.1),
    "AdamW fp32": (8, 323, 28.0),
    "AdamW bf16": (8, 323, 14.0),
    "AdamW bf16 stochastic": (1, 1, 14.0),
    "SGD bf16 stochastic": (1, 1, 6.0),
    "Lion fp32": (555, 1455, 52.0),
    "Adafactor fp32": (3807, 9987, 92.1),
}
TRAINING = {  # case: optimizer, with checkpointing at 1 x 2048 tokens in bf16
    "LOMO": {"name": "lomo"},
    "LOMO clipped": {"name": "lomo", "max_grad_norm": 1.0},
    "LOMO stochastic": {"name": "lomo", "rounding": "stochastic"},
    "AdamMini in backward": {"name": "adam_mini", "backward": {}},
    "AdamMini in backward, 8-bit moment, clipped": {  # examples/finetune_7b_24gb.py
        "name": "adam_mini", "state_dtype": "int8", "rounding": "stochastic", "backward": {"max_grad_norm": 1.0},
    },
    "AdamMini": {"name": "adam_mini"},
    "AdamW": {"name": "adamw"},
}  # fmt: skip


@dataclasses.dataclass
class Setting:
    """device, whether everything is small, and seconds of time.monotonic at the start and at the section's end.

    forecast: {case of TRAINING: what the planner predicts for this device}, nothing where everything is small.
    """

    device: str
    tiny: bool
    started: float
    deadline: float = 0.0
    forecast: dict = dataclasses.field(default_factory=dict)

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def model(self, name: str):
        """A model's settings."""
        return SMALL if self.tiny else MODELS[name]


def free() -> None:
    """Give memory back before the next case."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def parameters(setting: Setting, name: str, dtype: torch.dtype) -> Partition:
    """A model's parameters and blocks on the device, random numbers with random gradients; no module around them."""
    given = setting.model(name)
    with torch.device("meta"):
        model = llama.build(given) if isinstance(given, str) else llama.build(**given)
    blocks, entries = partition(model), {}
    for key, p in model.named_parameters():
        entries[key] = (
            blocks[key],
            nn.Parameter(torch.empty(p.shape, dtype=dtype, device=setting.device).normal_(0, 0.02)),
        )
        entries[key][1].grad = torch.empty_like(entries[key][1]).normal_(0, 1e-3)
    return Partition(entries, {}, None)


def timed(
    step: Callable[[], None], setting: Setting, rounds: int, base: Callable[[], None] | None = None, warmup: int = 3
) -> dict:
    """Median milliseconds of a step on the GPU's clock and on the host's until it may go on, with the slowest round.

    base: another step, made before each of these; then also the median of the rounds' ratios to it.
    """
    found = []
    for _ in range(warmup + rounds):
        other = clocked(base, setting)[0] if base else None
        found.append((*clocked(step, setting), other))
    gpu, host, others = zip(*found[warmup:], strict=True)
    result = dict(ms=statistics.median(gpu), slowest_ms=max(gpu), host_ms=statistics.median(host))
    return result | ({"times_fused_adamw": statistics.median(a / b for a, b in zip(gpu, others))} if base else {})


def clocked(step: Callable[[], None], setting: Setting) -> tuple[float, float]:
    """Milliseconds of one step on the GPU's clock, and on the host's until it may go on."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if setting.device == "cuda" else None
    started = time.perf_counter()
    if marks:
        marks[0].record()
    step()
    if marks:
        marks[1].record()
    host = 1e3 * (time.perf_counter() - started)
    sync()
    return (marks[0].elapsed_time(marks[1]) if marks else host), host


def launches(step: Callable[[], None], setting: Setting) -> int | None:
    """Kernels that one step starts, as the profiler sees them; None on a CPU."""
    if setting.device != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = profiler.events()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA and "Mem" not in e.name for e in events)


def package(module: str, name: str):
    """A class of an optional package, or None."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return None


def official(model: Partition, config: dict):
    """The official Adam-mini over these parameters, or None where it is not installed."""
    cls = package("adam_mini", "Adam_mini")
    if cls is None:
        return None
    sizes = dict(dim=config["n_embd"], n_heads=config["n_head"], n_kv_heads=config["n_head"])
    return cls(model.named_parameters(), lr=1e-6, verbose=False, **sizes)


def optimizer(case: str, setting: Setting, model: Partition, name: str):
    """The optimizer of a row of COUNTED; None where it is not installed."""
    ours = dict(lr=1e-6, rounding="stochastic" if case.endswith("stochastic") else "nearest")
    plain = [p for _, p in model.named_parameters()]
    rule = case.split()[0]
    if rule == "torch":
        return torch.optim.AdamW(plain, lr=1e-6, **{case.split()[1]: True})
    if rule == "official":
        given = setting.model(name)
        return official(model, given if isinstance(given, dict) else dict(n_embd=4096, n_head=32))
    if rule == "AdamMini":
        return optim.AdamMini(model, weight_decay=0.1, **ours)
    return getattr(optim, rule)(plain, **ours)


class Without:
    """Inside, ways of a step are switched off by name: "Triton" its kernels, "stages" also what runs without them."""

    def __init__(self, case: str):
        self.kernels, self.ways = gpu_step.kernels, optim.AdamMini.ways_elsewhere
        self.stages = "stages" in case
        self.off = self.stages or "without Triton" in case

    def __enter__(self):
        if self.off:
            gpu_step.kernels = lambda device: None
        if self.stages:
            optim.AdamMini.ways_elsewhere = ()

    def __exit__(self, *error):
        gpu_step.kernels, optim.AdamMini.ways_elsewhere = self.kernels, self.ways


# -- sections ------------------------------------------------------------------------------------------------------------


def machine(setting: Setting) -> dict:
    """Versions, and the rate at which memory can be copied."""
    found = dict(python=platform.python_version(), torch=torch.__version__)
    triton = package("triton", "__version__")
    found |= dict(triton=triton, gpu=torch.cuda.get_device_name() if setting.device == "cuda" else None)
    found |= dict(clocks=clocks() if setting.device == "cuda" else None)
    size = 1 << (12 if setting.tiny else 30)
    a, b = (torch.zeros(size, device=setting.device) for _ in range(2))
    ms = timed(functools.partial(b.copy_, a), setting, 5 if setting.tiny else 20)["ms"]
    return {**found, "copy_tb_per_s": 2 * 4 * size / ms / 1e9}


def clocks() -> str | None:
    """Clock rates of the GPU as its driver tells them, which is only asked; None where it cannot be."""
    asked = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def tests(setting: Setting) -> dict:
    """tests/gpu, in a process of its own."""
    if setting.device != "cuda":
        return {"missing": "tests/gpu needs a GPU"}
    seconds = max(5, setting.deadline - time.monotonic())
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    return dict(passed=done.returncode == 0, says=done.stdout.strip().splitlines()[-1:], tail=done.stdout[-2000:])


def steps(setting: Setting) -> dict:
    """Every optimizer of COUNTED, at both sizes: milliseconds, launches, bytes per second."""
    rows = {}
    for name in MODELS:
        for case, (_, _, moved) in COUNTED.items():
            if setting.late:
                return {"rows": rows, "cut": "late: the remaining cases were left out"}
            if name == "7B" and case.startswith(("Lion", "Adafactor", "torch foreach")):
                continue
            rows[f"{name} {case}"] = step(setting, name, case, moved)
            free()
    return {"rows": rows}


def step(setting: Setting, name: str, case: str, moved: float) -> dict:
    """One row of steps(): in turn with torch's fused AdamW on the same parameters, where memory holds both."""
    precision = "bf16" if "bf16" in case else "fp32"
    base = f"torch fused AdamW {precision}"
    try:
        model = parameters(setting, name, DTYPES[precision])
        rule = optimizer(case, setting, model, name)
        if rule is None:
            return {"missing": "not installed"}
        with Without(case):
            rule.step()  # its state comes first
            beside = None if case == base else beside_it(base, setting, model, name)
            found = timed(rule.step, setting, 3 if setting.tiny else 5 if name == "7B" else 15, beside)
            found["launches"] = launches(rule.step, setting)
    except torch.OutOfMemoryError:
        return {"missing": "out of memory"}
    elements = sum(p.numel() for _, p in model.named_parameters())
    return {**found, "tb_per_s": moved * elements / found["ms"] / 1e9}


def beside_it(case: str, setting: Setting, model: Partition, name: str) -> Callable[[], None] | None:
    """The step of another optimizer of the same parameters, or None where there is no memory for its state."""
    other = optimizer(case, setting, model, name)
    try:
        other.step()
    except torch.OutOfMemoryError:
        other.state.clear()
        free()
        return None
    return other.step


def variants(setting: Setting) -> dict:
    """AdamMini with other sizes of tiles, and other numbers of warps."""
    rows = {}
    for name, count in (("elements", 8), ("blocks", 4), ("blocks", 16), ("long", 8), ("long", 32)):
        if setting.late:
            break
        before = gpu_step.WARPS[name]
        gpu_step.WARPS[name] = count
        try:
            rows[f"{count} warps for {name}, not {before}"] = step(setting, "134M", "AdamMini bf16", 10.3)
        finally:
            gpu_step.WARPS[name] = before
            free()
    for tile in (1024, 2048, 4096):
        for longest in (4096, 16384):
            if setting.late:
                break
            before = gpu_tables.TILE, gpu_tables.LONGEST
            gpu_tables.TILE, gpu_tables.LONGEST = tile, longest
            try:
                rows[f"tile {tile}, longest {longest}"] = step(setting, "134M", "AdamMini bf16", 10.3)
            finally:
                gpu_tables.TILE, gpu_tables.LONGEST = before
                free()
    return {"rows": rows}


def cell(optimizer: dict, setting: Setting, batch: int = 1) -> TrainingSetup:
    """1 x 2048 tokens in bf16 with checkpointing."""
    return TrainingSetup(
        optimizer, batch=batch, seq_len=16 if setting.tiny else 2048, precision="bf16", checkpointing=True
    )


def model_of(setting: Setting):
    return target_model.find({"name": "llama", **SMALL} if setting.tiny else MODELS["7B"])


def training(setting: Setting) -> dict:
    """Whole training steps: seconds, tokens per second, peak memory."""
    rows = {}
    for case, chosen in TRAINING.items():
        if setting.late:
            return {"rows": rows, "cut": "late: the remaining cases were left out"}
        rows[case] = train(setting, cell(with_rate(chosen), setting))
        free()
    return {"rows": rows}


def with_rate(chosen: dict) -> dict:
    return {"lr": 1e-6, **chosen}


def train(setting: Setting, chosen: TrainingSetup, rounds: int = 3, warmup: int = 3) -> dict:
    """One row of training(); its first step, which makes the optimizer's state, is not timed."""
    try:
        run = measured_peak.build(model_of(setting), chosen, setting.device)
        run()
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(run, setting, rounds, warmup=warmup)["ms"] / 1e3
    except torch.OutOfMemoryError:
        return {"missing": "out of memory"}
    peak = torch.cuda.max_memory_allocated() / 2**30 if setting.device == "cuda" else None
    return dict(seconds=seconds, tokens_per_s=chosen.batch * chosen.seq_len / seconds, peak_gib=peak)


def batches(setting: Setting) -> dict:
    """The largest batch that fits, from the predicted one down, and whether it is the largest: does one more fit?"""
    rows, forecast = {}, setting.forecast
    for case in ("AdamW", "AdamMini"):
        if setting.late:
            return {"rows": rows, "cut": "late: the remaining cases were left out"}
        batch, found = forecast.get(case, {}).get("batch") or 2, {"missing": "out of memory"}
        while "missing" in found and batch > 0 and not setting.late:
            found = train(setting, cell(with_rate(TRAINING[case]), setting, batch), rounds=1, warmup=0)
            rows[case] = {"batch": batch, **found}
            batch -= 1
            free()
        if "missing" not in found and not setting.late:
            more = train(setting, cell(with_rate(TRAINING[case]), setting, rows[case]["batch"] + 1), 1, 0)
            rows[case]["one_more"] = more.get("missing", "fits")
            free()
    return {"rows": rows}


def host(setting: Setting) -> dict:
    """What a hook costs the host: a backward pass of many small layers with and without LOMO."""
    count = 4 if setting.tiny else 291
    net = nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(count)]).to(setting.device)
    x = torch.randn(1, 16, device=setting.device)

    def plain() -> None:
        net(x).sum().backward()
        net.zero_grad()

    without = timed(plain, setting, 5)["host_ms"]
    lomo = optim.Lomo(net, lr=1e-6)

    def inside() -> None:
        lomo.backward(net(x).sum())
        lomo.step()

    return {"microseconds_per_tensor": 1e3 * (timed(inside, setting, 5)["host_ms"] - without) / count}
