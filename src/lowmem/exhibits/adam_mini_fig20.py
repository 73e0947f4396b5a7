"""Fine-tuning and ReMax (Figure 20 in our count; the paper's number is unknown): held-out perplexity, then reward."""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import alignment as al
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import log_loss, mean
from lowmem.reporting.panels.losses import loss_curves
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, where
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "adam_mini_fig20",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 200,
    "kind": "figure",
    "title": "Fine-tuning and ReMax: perplexity and reward",
    "experiments": ["sft", "reward", "remax"],
    "published": "adam_mini.figure_sft_rlhf",
}

PANELS = {  # panel: (experiment, title, the paper's name of the final value)
    "lora": ("sft", "a  Fine-tuning, LoRA", "lora_final_ppl"),
    "full": ("sft", "b  Fine-tuning, all weights", "full_sft_final_ppl"),
    "learned": ("remax", "c  ReMax, learned reward", "remax_reward.{}_final"),
    "rule": ("remax", "d  ReMax, rule", None),
}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values, Adam-mini minus AdamW: lora.gap, full.gap (nat per word of the answers), learned.gain, rule.gain (reward)."""
    rule = next((run.config["measure"]["reward"]["share"] for run in where(runs, reward="rule")), "")
    shown = ExhibitResult(
        caption=f"{al.size_of(runs)}. Data: {al.data_of(runs)}. a, b: perplexity per {al.word_of(runs)} of held-out "
        "answers. c, d: mean reward of sampled answers to held-out questions; c by a reward model of ours, d by a rule, the "
        f"share of an answer's characters that match {rule}. Mean over seeds, thin lines the seeds.",
        columns=[
            "panel",
            "optimizer",
            "at the end",
            "Adam-mini minus AdamW",
            "KL to the start (nat per answer)",
            "tokens per answer",
            "paper",
        ],
        rows=[],
        deviations=[
            f"Mean over {scale.seeds(runs)}; the paper shows one run.",
            "The learned rewards of ours and of the paper have no common scale. d is ours.",
            "A higher learned reward is not a better answer: how good the reward model is stands in Table 3.",
        ],
    )
    drawn, panels = plots.figure([["lora", "full"], ["learned", "rule"]], width=9.6, height=5.8)
    for kind, (experiment, title, final) in PANELS.items():
        groups = al.of(runs, experiment, kind)
        tuning = experiment == "sft"
        gap = al.gap(groups, al.loss, "nat") if tuning else al.gap(groups, al.reward, "reward")
        shown.values[f"{kind}.{'gap' if tuning else 'gain'}"] = gap
        if tuning:
            shown.values[f"{kind}.gap.percent"] = al.gap(groups, log_loss, "%")
        for optimizer, found in groups.items():
            end = mean(found, al.perplexity if tuning else al.reward)
            kl, length = (
                "" if tuning else text(mean(found, lambda run, key=key: run.final(key)), digits=2)
                for key in ("kl", "answer_length")
            )
            theirs = paper(shown, published, final, display.name(optimizer))
            signed = text(gap, True) if optimizer == "adam_mini" else ""
            shown.rows.append([title[3:], display.name(optimizer), text(end), signed, kl, length, theirs])
        draw(panels[kind], groups, tuning, title, al.word_of(runs))
    shown.values["reward.accuracy"] = al.accuracy(al.of(runs, "reward", "first")["adamw"])
    for what in ("lora_final_ppl.start", "remax_reward.start"):
        shown.published += published_entry(what, printed(published, what))
    shown.figure = drawn
    return shown


def draw(axes, groups: dict[str, list[Run]], tuning: bool, title: str, word: str) -> None:
    """One line for each optimizer over examples or steps."""
    loss_curves(axes, groups, curve=al.perplexities if tuning else al.rewards)
    axes.set_title(title)
    if axes.has_data():
        unit = f"held-out perplexity per {word}" if tuning else "reward, held-out questions"
        axes.set(xlabel="training examples" if tuning else "step", ylabel=unit)
        axes.autoscale(axis="y")  # no seed is left out


def paper(shown: ExhibitResult, published: dict, final: str | None, optimizer: str) -> str:
    """The paper's value at the end of a curve, as a cell."""
    if final is None:
        return ""
    found = printed(published, final.format(optimizer)) or printed(published, final, optimizer=optimizer)
    shown.published += published_entry(f"{final.format(optimizer)}, {optimizer}", found)
    return "" if found is None else f"{found['value']:g}"
