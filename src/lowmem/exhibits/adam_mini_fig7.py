"""Figure 7 a to h of Adam-mini: the Hessian of each module of a one-layer Transformer, with the mass inside its blocks.

Exact Hessians in float64 of our GPT-2 with 1 layer, 4 heads, width 16 and 8 symbols. Each image comes with the
share of |H| inside the blocks and that of random partitions of the same sizes, so that "near block-diagonal" is a
number. A second, deeper model is sampled by Hessian-vector products and appears in the rows. Panel i: Llama trained with
PyTorch's tensors as blocks, from the runs of llama_variants.
"""

from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import hessian as hn
from lowmem.reporting.numbers import scale
from lowmem.reporting.panels import default_partition, matrices
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs, unfinished

EXHIBIT = {
    "id": "adam_mini_fig7",
    "paper": "adam_mini",
    "label": "Figure 7",
    "order": 70,
    "kind": "figure",
    "topic": "theory",
    "title": "Hessian blocks of a Transformer, and the default partition",
    "experiments": ["hessian_transformer", "hessian_deep", "llama_variants"],
    "published": "adam_mini.figure7",
}

COLUMNS = [
    "model",
    "panel",
    "module",
    "blocks",
    "training",
    "mass inside blocks",
    "random partitions (median, 97.5 %)",
    "inside / outside, mean |H|",
    "runs",
]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: excess.<module> (mass inside minus the null's upper end, first stage), share.least, excess.deep;
    default.excess and default.roughness of panel i (reporting/panels/default_partition.py)."""
    toy = [run for run in runs if run.experiment == "hessian_transformer"]
    deep = [run for run in runs if run.experiment == "hessian_deep"]
    variants = [run for run in runs if run.experiment == "llama_variants"]
    trained = default_partition.methods(runs)
    seeds = scale.seeds(run for group in default_partition.at_adamw_rate(trained).values() for run in group)
    shown = ExhibitResult(
        caption=f"a to h: {scale.about(toy)}i: {scale.about(variants)}a to h: |H| of each "
        "module's weights after about 1 % of training, rows and columns ordered by block (white lines), averaged over "
        "tiles. Below: share of |H| inside the blocks, and the middle 95 % of 200 random "
        f"partitions of equal sizes. {matrices.SCALE[0].upper()}{matrices.SCALE[1:]}. Intervals: 95 % over seeds. "
        "i: training loss of Llama with both partitions at the best rate of AdamW, thick their median, and final loss "
        "by rate.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            f"Panel i: {seeds} on the model of this tier; the paper shows one run of Llama2-1B.",
            "The paper names neither data nor training; ours is prose whose bytes are dealt to 8 groups of equal "
            "frequency, trained by Adam.",
            "Value is cut by output neuron, as the paper's rule says, though its panel is labelled with 4 heads.",
        ],
    )
    for panel, module in zip("abcdefgh", hn.MODULES, strict=True):
        shown.published += published_entry(
            f"{panel}, {module}: blocks", printed(published, "blocks", panel=panel, module=module)
        )
    excess = {}
    for name, group in (("1 layer, width 16", toy), (deep_name(deep), deep)):
        for stage in hn.stages(group):
            for letter, module in zip("abcdefgh", hn.MODULES, strict=True):
                excess[name, stage, module] = add_row(shown, name, letter, module, stage, group)
    summarise(shown, toy, deep, excess)
    default_partition.add(shown, trained)
    shown.figure = draw(toy, trained)
    return shown


def deep_name(runs: list) -> str:
    model = runs[0].config["model"] if runs else {"n_layer": 0, "n_embd": 0}
    return f"{model['n_layer']} layers, width {model['n_embd']}, sampled"


def add_row(shown: ExhibitResult, model: str, letter: str, module: str, stage: str, runs: list):
    """One row; returns the estimate over seeds of (share minus the null's 97.5 %)."""
    keys = ("share", "null", "null_high", "contrast", "blocks", "kind", "tensors")
    found = hn.numbers(runs, stage, module, *keys)
    when = hn.at(stage)
    if not found:
        shown.rows.append([model, letter, module, "", when, unfinished(runs) or "not run: no such module", "", "", ""])
        return None
    share, excess = (
        hn.over_seeds([f[0] for f in found]),
        hn.over_seeds([f[0] - f[2] for f in found]),
    )
    null, high, contrast = (sum(f[k] for f in found) / len(found) for k in (1, 2, 3))
    blocks = f"{found[0][4]} {hn.plural(found[0][5])}" + (
        f" in each of {found[0][6]}" if (found[0][6] or 1) > 1 else ""
    )
    cells = [hn.percent(share), f"{100 * null:.1f} %, {100 * high:.1f} %", f"{contrast:.1f}", len(found)]
    shown.rows.append([model, letter, module, blocks, when, *cells])
    return excess


def summarise(shown: ExhibitResult, toy: list, deep: list, excess: dict) -> None:
    """Values for the claims, at the first stage, where the paper's panels stand."""
    reason = unfinished(toy) or (None if toy else "not run: no run is planned")
    first = hn.stages(toy)[0] if toy else ""
    for module in hn.MODULES:
        e = excess.get(("1 layer, width 16", first, module))
        shown.values[f"excess.{module}"] = hn.value(e, reason, "of |H|")
    shares = [hn.over_seeds([f[0] for f in hn.numbers(toy, first, module, "share")]) for module in hn.MODULES]
    shown.values["share.least"] = hn.smallest(shares, reason, "of |H|")
    reason = unfinished(deep) or (None if deep else "not run: no run is planned")
    first = hn.stages(deep)[0] if deep else ""
    found = [excess.get((deep_name(deep), first, module)) for module in hn.MODULES]
    shown.values["excess.deep"] = hn.smallest(found, reason, "of |H|")


def draw(runs: list, trained: dict):
    """Eight panels of the first seed at the first stage, and the training loss of panel i."""
    drawn, panels = plots.figure([list("abcd"), list("efgh"), list("iijj")], width=10.6, height=8.8)
    default_partition.draw(panels["i"], panels["j"], trained)
    run = next((run for run in runs if run.status == "done"), None)
    arrays = run.arrays() if run else {}
    stage = hn.stages(runs)[0] if runs else ""
    for letter, module in zip("abcdefgh", hn.MODULES, strict=True):
        picture = arrays.get(f"{module}@{stage}")
        found = hn.numbers([run], stage, module, "share", "null_low", "null_high", "blocks", "kind") if run else []
        if picture is None or not found:
            plots.empty(panels[letter], unfinished(runs) or "not run: its arrays are lost")
            continue
        *shares, blocks, kind = found[0]
        title = f"({letter}) {module}: {blocks} {hn.plural(kind)}"
        matrices.show(panels[letter], picture, blocks, title, hn.inside(*shares))
    if arrays:
        matrices.colour_bar(drawn, [panels[letter] for letter in "abcdefgh"])
    return drawn
