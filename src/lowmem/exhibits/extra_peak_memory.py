"""LOMO's headline measured: the peak memory of a fine-tuning step by optimizer, over that of inference alone."""

from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.runs import Run, Runs, unfinished
from lowmem.reporting.values import Value, exact, missing

EXHIBIT = {
    "id": "extra_peak_memory",
    "paper": "extra",
    "label": "Peak memory",
    "order": 25,
    "kind": "table",
    "topic": "cost",
    "title": "Measured peak memory of fine-tuning over inference",
    "experiments": ["peak_memory"],
    "published": None,
}

METHODS = {
    "inference": "inference",
    "lomo": "LOMO",
    "lomo_norm": "LOMO, global norm clipped",
    "adalomo": "AdaLomo",
    "adam_mini_backward": "Adam-mini in backward",
    "sgd": "SGD",
    "adam_mini": "Adam-mini",
    "adamw": "AdamW",
}
PARTS = ("parameters", "gradients", "optimizer_state", "activations", "temporaries")


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: <method>.over_inference (ratio of peaks), lomo.over_weights (peak less inference, in weights), order (1 if
    LOMO < SGD < AdamW)."""
    base = runs.one(method="inference")
    shown = ExhibitResult(
        caption=scale.model(runs)
        + "Peak of PyTorch's allocator in one step after the first (torch.profiler's events on a CPU, torch.cuda's "
        "statistics on a GPU), MB. Components: what is alive at the peak, as the accountant has it.",
        columns=["method", "peak MB", "over inference", *[part.replace("_", " ") for part in PARTS]],
        rows=[],
        deviations=setting(base),
    )
    peaks = {}
    for name, words in METHODS.items():
        run = runs.one(method=name)
        if run.status != "done":
            shown.rows.append([words, run.reason, *[""] * (len(PARTS) + 1)])
        else:
            peaks[name] = run.final("measured_bytes")
            memory = run.record["memory"]
            parts = [f"{memory[part] / 1e6:,.1f}" if part in memory else "" for part in PARTS]
            over = f"{peaks[name] / peaks['inference']:.3f}" if "inference" in peaks else ""
            shown.rows.append([words, f"{peaks[name] / 1e6:,.1f}", over, *parts])
        if name != "inference":
            reason = unfinished([run, base])
            ratio = None if reason else peaks[name] / peaks["inference"]
            shown.values[f"{name}.over_inference"] = missing(reason) if reason else exact(ratio, "times")
    shown.values["lomo.extra_weights"] = extra(runs.one(method="lomo"), base)
    reason = unfinished(runs.one(method=name) for name in ("lomo", "sgd", "adamw"))
    ordered = None if reason else int(peaks["lomo"] < peaks["sgd"] < peaks["adamw"])
    shown.values["order"] = missing(reason) if reason else exact(ordered, "(1: in this order)")
    return shown


def extra(run: Run, base: Run) -> Value:
    """What a LOMO step needs beyond inference, in sizes of the weights."""
    if reason := unfinished([run, base]):
        return missing(reason)
    more = run.final("measured_bytes") - base.final("measured_bytes")
    return exact(more / base.final("weights_bytes"), "times the weights")


def setting(run: Run) -> list[str]:
    """Model and batch as text."""
    asked, model = run.config.get("measure", {}), run.config.get("model", {})
    if not asked:
        return []
    size = model.get("size") or "a tiny Llama"
    checkpointing = "with" if asked.get("checkpointing") else "without"
    share = (
        "its tied embedding is 21 % of the weights (LLaMA-7B's: 2 %), so one gradient with its fp32 copies weighs much"
    )
    words = (
        f"{asked['batch']} x {asked['seq_len']} tokens, {asked['precision']}, {checkpointing} activation checkpointing"
    )
    where = "a GPU" if asked.get("device") == "cuda" else "a CPU"
    return [f"{size}, {words}, on {where}; fresh weights{'; ' + share if size == 'smollm2-135m' else ''}."]
