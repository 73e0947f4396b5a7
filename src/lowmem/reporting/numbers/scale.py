"""How large the runs of an exhibit are, and what their losses are per: the first words of a caption, the unit of an axis."""

from collections import Counter
from collections.abc import Iterable

from lowmem.reporting.numbers.losses import parameters
from lowmem.reporting.runs import Run, ended

UNITS = {"byte": "byte", "char": "character"}


def per(runs: Iterable[Run]) -> str:
    """What a loss is per: byte, character or token of the tokenizer; token where runs differ or are none."""
    found = {UNITS.get((run.config.get("data") or {}).get("tokenizer"), "token") for run in runs}
    return found.pop() if len(found) == 1 else "token"


def loss(runs: Iterable[Run], which: str = "validation loss") -> str:
    """Label of a loss axis: 'validation loss (nat per byte)'."""
    return f"{which} (nat per {per(runs)})"


def about(runs: Iterable[Run]) -> str:
    """'Models of 43k to 146k parameters, 256k training bytes each. ' of language-model runs; nothing where there are none."""
    runs = [
        run for run in runs if run.config.get("train", {}).get("seq_len") and parameters(run.config.get("model", {}))
    ]
    if not runs:
        return ""
    counts = [parameters(run.config["model"]) for run in runs]
    seen = [
        run.config["train"]["steps"] * run.config["train"]["batch_size"] * run.config["train"]["seq_len"]
        for run in runs
    ]
    return f"Models of {between(counts)} parameters, {between(seen)} training {per(runs)}s each. "


def model(runs: Iterable[Run]) -> str:
    """'Models of 3.12M parameters. ' of language models that are measured and not trained, or 'Model: smollm2-135m. ' of
    those that go by a name; nothing where none has a size."""
    models = [run.config.get("model") or {} for run in runs]
    counts, names = (
        [count for one in models if (count := parameters(one))],
        {one["size"] for one in models if "size" in one},
    )
    if counts:
        return f"Models of {between(counts)} parameters. "
    return f"Model: {', '.join(sorted(names))}. " if names else ""


def seeds(runs: Iterable[Run]) -> str:
    """'3 seeds', or '3 to 5 seeds' where variants have different numbers of them; planned runs count where none has ended."""
    runs = list(runs)
    there = [run for run in runs if ended(run)] or runs
    counts = list(Counter((run.experiment, run.variant) for run in there).values()) or [0]
    return f"{between(counts)} seed{'s' * (counts != [1] * len(counts))}"


def counted(runs: Iterable[Run], what: str) -> str:
    """'Models of 28.5k to 136k parameters, 7.68k training pictures each. ' of models whose fp32 weights their records count.

    what: what one of a batch is, "training pictures"; nothing where no run is done.
    """
    done = [run for run in runs if run.status == "done" and run.config["train"].get("steps")]
    counts = [run.record["memory"]["parameters"] // 4 for run in done if (run.record["memory"] or {}).get("parameters")]
    seen = [run.config["train"]["steps"] * (run.config["train"].get("batch_size") or 1) for run in done]
    return f"Models of {between(counts)} parameters, {between(seen)} {what} each. " if counts else ""


def fine_tuned(runs: Iterable[Run]) -> str:
    """'SmolLM2-135M, fine-tuned on 80 to 1k questions. ' of pretrained models; nothing where none is trained."""
    trained = [run for run in runs if run.config["train"]["steps"]]
    names = {run.config["model"].get("pretrained") or "A model with fresh weights" for run in trained}
    seen = [run.config["train"]["steps"] * run.config["train"]["batch_size"] for run in trained]
    told = " and ".join(sorted({"smollm2": "SmolLM2-135M"}.get(name, name) for name in names))
    return f"{told}, fine-tuned on {between(seen)} questions. " if trained else ""


def between(numbers: list[int]) -> str:
    """'43k to 146k', or one number where all are equal."""
    low, high = short(min(numbers)), short(max(numbers))
    return low if low == high else f"{low} to {high}"


def short(number: int) -> str:
    """146000 -> '146k'."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)
