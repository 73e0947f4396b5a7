"""Table 3 of Adam-mini: alignment by LoRA, full fine-tuning and ReMax.

The paper prints MT-Bench scores, which need a judge model. Elsewhere the table shows held-out perplexity, accuracy on
held-out pairs and reward under their own names; a score of a judge appears only where its judged.jsonl is (judge.py).
"""

from lowmem.finetuning import judge
from lowmem.reporting import display
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import alignment as al
from lowmem.reporting.numbers.losses import difference, log_loss, mean
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, unfinished
from lowmem.reporting.values import Value, missing, text

EXHIBIT = {
    "id": "adam_mini_table3",
    "paper": "adam_mini",
    "label": "Table 3",
    "order": 13,
    "kind": "table",
    "title": "Alignment by LoRA, full fine-tuning and ReMax",
    "experiments": ["sft", "reward", "remax"],
    "published": "adam_mini.table3",
    "archived": ["laptop/sft_long"],
}

COLUMNS = ["stage", "optimizer", "measure", "before", "at the end", "Adam-mini minus AdamW", "MT-Bench", "seeds"]
CELLS = {"lora": "SFT-LoRA", "full": "SFT", "learned": "RLHF"}  # where the paper's scores belong
STAGES = {  # (experiment, kind): label
    ("sft", "lora"): "fine-tuning, LoRA",
    ("sft", "full"): "fine-tuning, all weights",
    ("reward", "first"): "reward model",
    ("reward", "hh"): "reward model on HH-RLHF",
    ("remax", "learned"): "ReMax, learned reward",
    ("remax", "rule"): "ReMax, rule",
}
NEEDS_HH = "not run: needs hh_rlhf=hub or hh_rlhf_dir"


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: judged.<lora|full|learned> (points of the judge, Adam-mini minus AdamW), reward.accuracy, hh.accuracy (%),
    long.full.gap (nat, of the archived runs; long.full.gap.percent of AdamW's loss)."""
    shown = ExhibitResult(
        caption=f"{al.size_of(runs)}. Data: {al.data_of(runs)}. Held-out perplexity is per {al.word_of(runs)} of the "
        "answers (lower is better); pair accuracy is the share of held-out pairs whose preferred answer gets the higher "
        "score, with an interval over pairs; reward is the mean over answers to held-out questions. Mean over seeds "
        "with its 95 % interval. MT-Bench stands only where a judge's scores were read.",
        columns=COLUMNS,
        rows=[],
        deviations=deviations(runs, tier),
    )
    publish(shown, published)
    for (experiment, kind), label in STAGES.items():
        groups = al.of(runs, experiment, kind)
        if kind == "hh" and not any(groups.values()):
            shown.rows.append([label, "", "pair accuracy (%)", "", NEEDS_HH, "", "", ""])
            continue
        add_rows(shown, label, experiment, kind, groups)
    kept = al.of(runs.archived, "sft_long", "full")
    add_rows(shown, "fine-tuning of SmolLM2-135M (archived)", "sft", "long", kept)
    shown.values["long.full.gap"] = al.gap(kept, al.loss, "nat")
    shown.values["long.full.gap.percent"] = al.gap(kept, log_loss, "%")
    shown.values["reward.accuracy"] = al.accuracy(al.of(runs, "reward", "first")["adamw"])
    hh = al.of(runs, "reward", "hh")["adamw"]
    shown.values["hh.accuracy"] = al.accuracy(hh) if hh else missing(NEEDS_HH)
    return shown


def add_rows(shown: ExhibitResult, label: str, experiment: str, kind: str, groups: al.Groups) -> None:
    """A row for each optimizer, and the judge's value where the paper has one."""
    for optimizer, runs in groups.items():
        name, start, end, gap = measured(experiment, groups, runs)
        gap = gap if optimizer == "adam_mini" else ""
        told = score(runs) if kind in CELLS else ""
        told = told if isinstance(told, str) else text(told, digits=2)
        shown.rows.append([label, display.name(optimizer), name, start, end, gap, told, len(runs)])
    if kind in CELLS:
        shown.values[f"judged.{kind}"] = judged_gap(groups)


def measured(experiment: str, groups: al.Groups, runs: list[Run]) -> tuple[str, str, str, str]:
    """(measure, before, at the end, gap) as cells."""
    if experiment == "sft":
        name, ends = f"held-out perplexity per {al.word_of(runs)}", mean(runs, al.perplexity)
        gap = with_unit(al.gap(groups, al.loss, "nat"), 4)
        return name, before(runs, al.perplexities), text(ends), gap
    if experiment == "reward":
        gap = with_unit(al.gap(groups, lambda run: run.final("accuracy"), "points"), 1)
        return "pair accuracy (%)", "50.0 (chance)", text(al.accuracy(runs), digits=1), gap
    gap = text(al.gap(groups, al.reward, "reward"), True, 3)
    return "reward", before(runs, al.rewards), text(mean(runs, al.reward)), gap


def with_unit(entry: dict, digits: int) -> str:
    """A difference as a cell, with its unit where there is a number."""
    unit = "" if entry["value"] is None else f" {entry['unit']}"
    return text(entry, True, digits) + unit


def before(runs: list[Run], series) -> str:
    """The start as a cell, without an interval, since all runs start from the same weights."""
    found = al.at_start(runs, series)
    return found["reason"] if found["value"] is None else f"{found['value']:.3f}"


def score(runs: list[Run]) -> Value:
    """The judge's mean score over seeds, as an entry, or why there is none."""
    gone = unfinished(runs) or no_judge(runs)
    return missing(gone) if gone else mean(runs, lambda run: judge.judged(run.folder))


def no_judge(runs: list[Run]) -> str | None:
    """Why there are no scores; None when all runs have them."""
    if not runs:
        return "not run: not planned in this tier"
    if any(not run.config["measure"].get("questions") for run in runs):
        return "not run: no judge"
    lacking = [run for run in runs if judge.judged(run.folder) is None]
    return f"not run: {judge.SCORES} is missing beside {len(lacking)} of {len(runs)} records" if lacking else None


def judged_gap(groups: al.Groups) -> Value:
    """Adam-mini minus AdamW in the judge's score, paired by seed, as an entry."""
    gone = no_judge([*groups["adamw"], *groups["adam_mini"]])
    if gone and not unfinished([*groups["adamw"], *groups["adam_mini"]]):
        return missing(gone)
    return difference(groups["adam_mini"], groups["adamw"], lambda run: judge.judged(run.folder), "points of the judge")


def publish(shown: ExhibitResult, published: dict) -> None:
    """The paper's scores as rows of their own."""
    for kind, cell in CELLS.items():
        label = next(label for (_, own), label in STAGES.items() if own == kind)
        for optimizer in ("AdamW", "Adam-mini"):
            found = printed(published, "MT-Bench score", cell=cell, optimizer=optimizer)
            shown.published += published_entry(f"{cell}, {optimizer}", found)
            if found:
                told = f"{found['value']:.2f}" + (" (recalled)" if found.get("recalled") else "")
                shown.rows.append([f"{label} (paper)", optimizer, "MT-Bench score", "", "", "", told, 1])


def deviations(runs: Runs, tier: str) -> list[str]:
    """What differs from the paper, read off the configurations."""
    told = ["The archived rows are another model, fine-tuned for 40 steps of 4 answers at one rate, not tuned."]
    told += ["The reward model by Adam-mini, the pairs of HH-RLHF and the rule are ours.", al.left_out(runs)]
    if tier != "paper":
        told.append("Model, data and length are those of this tier, not Llama-2-7B and UltraFeedback.")
    if not any(run.config["measure"].get("questions") for run in runs):
        told.append("No MT-Bench: measure.questions names no questions for a judge (lowmem/finetuning/judge.py).")
    if tier in ("laptop", "smoke"):
        told.append("One rate for both optimizers, chosen for AdamW on seed 0.")
    return [line for line in told if line]
