"""Shared by the exhibits on alignment: runs of sft, reward and remax as optimizers, their measures, and what was used."""

import math
from collections.abc import Iterable

from lowmem.analysis.stats import estimate
from lowmem.pipeline import experiments
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import absent, difference, mean, parameters
from lowmem.reporting.runs import Run, where
from lowmem.reporting.values import Value, estimated, missing

OPTIMIZERS = ("adamw", "adam_mini")
TASKS = ("sft", "reward", "remax")
KINDS = {"sft": "tuning", "sft_long": "tuning", "reward": "pairs", "remax": "reward"}  # axis of an experiment
CUT = ("questions", "answers")  # what a run counts as cut to length
Groups = dict[str, list[Run]]  # {optimizer: runs by seed}


def of(runs: Iterable[Run], experiment: str, kind: str) -> Groups:
    """Runs of one kind (what is tuned, on which pairs, for which reward) by optimizer; empty where none are planned."""
    found = where((run for run in runs if run.experiment == experiment), **{KINDS[experiment]: kind})
    return {name: where(found, optimizer=name) for name in OPTIMIZERS}


def gap(groups: Groups, measure, unit: str) -> Value:
    """Adam-mini minus AdamW at the end, paired by seed, as an entry of ExhibitResult.values."""
    return difference(groups["adam_mini"], groups["adamw"], measure, unit)


def perplexity(run: Run) -> float | None:
    """Held-out perplexity of the answers at the end; None for a run that did not finish."""
    loss = run.final("val_loss")
    return None if loss is None else math.exp(loss)


def loss(run: Run) -> float | None:
    """Held-out loss at the end, nat per answer token; None for a run that did not finish."""
    return run.final("val_loss")


def reward(run: Run) -> float | None:
    """Mean reward at the end; None for a run that did not finish."""
    return run.final("reward")


def perplexities(run: Run) -> list[tuple[int, float]]:
    """[(examples, held-out perplexity)], the start included."""
    return [(row["examples"], math.exp(row["val_loss"])) for row in run.curve() if row.get("val_loss") is not None]


def rewards(run: Run) -> list[tuple[int, float]]:
    """[(step, mean reward of answers to held-out questions)], the start included."""
    return [(row["step"], row["reward"]) for row in run.curve() if row.get("reward") is not None]


def at_start(runs: list[Run], series) -> Value:
    """What a measure was before the first step, mean over seeds, as an entry."""
    return mean(runs, lambda run: next((y for x, y in series(run) if x == 0), None))


def accuracy(runs: list[Run]) -> Value:
    """Percent of held-out pairs in the right order: each pair's mean over seeds, then a bootstrap interval over pairs.

    The pairs are the same for all runs and few, so that which pairs they are matters more than the seed.
    """
    gone = absent(runs, runs)
    found = [run.arrays().get("hits") for run in runs] if not gone else []
    if any(hits is None for hits in found):
        return missing("not run: arrays.npz of a run is lost")
    return gone or estimated(estimate(100 * sum(hits.astype(float) for hits in found) / len(found)), "%")


def innermost(config: dict) -> dict:
    """The configuration that the first weights come from."""
    start = (config.get("model") or {}).get("pretrained")
    return innermost(start) if isinstance(start, dict) else config


def model_of(runs: Iterable[Run]) -> str:
    """The model as a reader should know it."""
    run = next(iter(runs), None)
    model = innermost(run.config)["model"] if run else {}
    weights = model.get("pretrained")
    if weights == "smollm2":
        return "SmolLM2-135M-Instruct, de-quantised from 4 bits"
    return weights or f"our Llama of {parameters(model) or 0:,} parameters that reads bytes"


def size_of(runs: Iterable[Run]) -> str:
    """'Our Llama of 133,696 parameters that reads bytes, 480 to 960 training texts in each stage'."""
    runs = list(runs)
    trained = [
        stage["train"]
        for run in runs
        for stage in experiments.stages(run.config)
        if stage.get("train", {}).get("steps")
    ]
    seen = [train["steps"] * train["batch_size"] for train in trained if "batch_size" in train]
    model = model_of(runs)
    return f"{model[0].upper()}{model[1:]}{f', {scale.between(seen)} training texts in each stage' if seen else ''}"


def word_of(runs: Iterable[Run]) -> str:
    """What a perplexity is per: byte or token."""
    run = next(iter(runs), None)
    return "byte" if run and not innermost(run.config)["model"].get("pretrained") else "token"


def data_of(runs: Iterable[Run]) -> str:
    """The datasets of instructions and pairs."""
    stages = [stage for run in runs for stage in experiments.stages(run.config) if stage.get("task") in TASKS]
    return ", ".join(dict.fromkeys(stage["data"]["dataset"] for stage in stages))


def left_out(runs: Iterable[Run]) -> str:
    """How many rows of the data were left out or changed, as the runs counted them."""
    cuts = {}
    for run in runs:
        if run.status == "done":
            cut = sum(run.final(f"{split}_{what}_cut") or 0 for split in ("train", "val") for what in CUT)
            name = f"{run.config['data']['dataset']} in {run.experiment}"
            cuts[name] = (run.final("excluded") or 0, cut, run.final("train_equal_when_cut") or 0)
    return "; ".join(
        f"{name}: {rows} rows left out as empty, equal or of two questions, {equal} training pairs as equal once cut, "
        f"{cut} texts cut to length"
        for name, (rows, cut, equal) in cuts.items()
    )
