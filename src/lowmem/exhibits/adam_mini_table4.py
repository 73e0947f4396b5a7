"""Table 4 of Adam-mini: perplexity of Llama sizes at the end of a Chinchilla budget.

The paper's cells were single points of a moving validation stream in October 2024 and were replaced in November; ours are
means over seeds on one fixed validation set.
"""

import math

from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import final_loss, largest, log_loss, mean
from lowmem.reporting.numbers.pairs import Pair, own_rate, pairs
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import Value, text

EXHIBIT = {
    "id": "adam_mini_table4",
    "paper": "adam_mini",
    "label": "Table 4",
    "order": 14,
    "kind": "table",
    "title": "Llama sizes at a Chinchilla budget",
    "experiments": ["llama_scaling"],
    "published": "adam_mini.table4",
}

PUBLISHED_TOKENS = {"39M": 1.02, "67M": 1.76, "102M": 2.67, "162M": 4.25, "271M": 7.1, "1B": 26.21}  # thousand millions
COLUMNS = ["model", "parameters", "tokens", "tokens per parameter", "AdamW perplexity", "Adam-mini perplexity"]
COLUMNS += ["loss gap, Adam-mini − AdamW (nat)", "seeds"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Rows by size, ours first, then the paper's. Values: gap.<size>, over sizes gap.worst and gap.worst.percent (of
    AdamW's loss); both with own_rate. before where each optimizer has its own best rate."""
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Validation perplexity at the end, mean over seeds. The gap is that of the losses at equal seed with its "
        "95 % interval: below zero Adam-mini is ahead. Rows marked paper are the published cells.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            f"A fixed validation set and {scale.seeds(runs)} instead of one run on a validation stream that moves on.",
            "Both optimizers decay all tensors; the official Adam-mini spares the norms.",
        ],
    )
    if tier != "paper":
        shown.deviations.append("Sizes and data are those of this tier; tokens per parameter are the paper's protocol.")
    sizes = pairs(runs)
    for size in sizes:
        add_row(shown, size)
    for name, measure in {"gap.worst": worst_gap, "gap.worst.percent": worst_percent}.items():
        shown.values[name] = measure(sizes)
        shown.values[f"own_rate.{name}"] = own_rate(runs, measure)
    for size, tokens in PUBLISHED_TOKENS.items():
        publish(shown, published, size, tokens)
    return shown


def worst_gap(sizes: list[Pair]) -> Value:
    return largest(size.final() for size in sizes)


def worst_percent(sizes: list[Pair]) -> Value:
    return largest(size.final(log_loss, "%") for size in sizes)


def add_row(shown: ExhibitResult, size: Pair) -> None:
    gap = shown.values[f"gap.{size.name}"] = size.final()
    config = size.runs["adamw"][0].config["train"]
    tokens = config["steps"] * config["batch_size"] * config["seq_len"]
    ratio = f"{tokens / size.parameters:.1f}" if size.parameters else ""
    cells = [perplexity(size, o) for o in ("adamw", "adam_mini")]
    shown.rows.append(
        [size.name, f"{size.parameters:,}", f"{tokens:,}", ratio, *cells, text(gap, True), len(size.seeds)]
    )


def perplexity(size: Pair, optimizer: str) -> str:
    """Mean of the seeds' perplexities, or why there is none."""
    found = mean(size.runs[optimizer], lambda run: None if final_loss(run) is None else math.exp(final_loss(run)))
    return text(found, digits=3)


def publish(shown: ExhibitResult, published: dict, size: str, tokens: float) -> None:
    """The paper's cells as a row, and among the published values."""
    cells = [printed(published, "perplexity", size=size, tokens_B=tokens, optimizer=o) for o in ("AdamW", "Adam-mini")]
    for optimizer, cell in zip(("AdamW", "Adam-mini"), cells, strict=True):
        shown.published += published_entry(f"{size}, {optimizer}, perplexity", cell)
    if None not in cells:
        gap = math.log(cells[1]["value"] / cells[0]["value"])
        numbers = [f"{cell['value']:.3f}" for cell in cells]
        shown.rows.append([f"{size} (paper)", "", f"{tokens:g} B", "", *numbers, f"{gap:+.4f}", 1])
