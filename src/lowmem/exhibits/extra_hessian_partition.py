"""Does the Hessian itself know the partition? Spectral clustering of |H| against the rule by neuron, head and token.

Our question, in no paper: Adam-mini takes its blocks from the architecture. Here a clustering that knows only |H| and
the number of blocks is compared with that rule by the adjusted Rand index: 1 the same grouping, 0 as by chance.
"""

from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import hessian as hn
from lowmem.reporting.numbers import scale
from lowmem.reporting.runs import Run, Runs, unfinished

EXHIBIT = {
    "id": "extra_hessian_partition",
    "paper": "extra",
    "label": "Extra",
    "order": 70,
    "kind": "table",
    "topic": "theory",
    "title": "A partition found from the Hessian against the rule",
    "experiments": ["hessian_transformer", "hessian_mlp"],
    "published": None,
}

COLUMNS = [
    "model",
    "module",
    "rule",
    "training",
    "agreement with the rule",
    "97.5 % of shuffled labels",
    "agreement with grouping by input",
    "clustered weights",
    "runs",
]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: agreement.least and above_chance.least over the Transformer's modules, agreement.mlp and
    above_chance.mlp; first stage each, where Figures 3 and 7 start."""
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Adjusted Rand index (1: same grouping, 0: as by chance) of a spectral clustering of |H| with the rule; "
        "mean and 95 % interval over seeds. Weights without any curvature are left out. Grouping by input is the "
        "wrong axis of the same matrix.",
        columns=COLUMNS,
        rows=[],
        deviations=["In no paper. The number of clusters is given; only their places are left to the matrix."],
    )
    toy = [run for run in runs if run.experiment == "hessian_transformer"]
    network = [run for run in runs if run.experiment == "hessian_mlp" and run.config["measure"].get("clusters")]
    found = {}
    for model, group, modules in (("Transformer", toy, hn.MODULES), ("eight neurons", network, ("hidden",))):
        for module in modules:
            for stage in hn.stages(group):
                found[module, stage] = add_row(shown, model, module, stage, group)
    for ending, group, modules in (("least", toy, hn.MODULES), ("mlp", network, ("hidden",))):
        reason = unfinished(group) or (None if group else "not run: no run is planned")
        stage = hn.stages(group)[0] if group else ""
        for k, name in enumerate(("agreement", "above_chance")):
            estimates = [(found.get((module, stage)) or (None, None))[k] for module in modules]
            shown.values[f"{name}.{ending}"] = hn.smallest(estimates, reason, "adjusted Rand index")
    return shown


def add_row(shown: ExhibitResult, model: str, module: str, stage: str, runs: list[Run]) -> tuple | None:
    """One row; returns estimates of the agreement and of its distance from the null's upper end."""
    names = ("agreement", "null_high", "agreement_by_input", "live")
    keys = ("blocks", "kind", "size", *[f"clusters.{name}" for name in names])
    found = [f for f in hn.numbers(runs, stage, module, *keys) if f[3] is not None]
    when = hn.at(stage)
    if not found:
        shown.rows.append([model, module, "", when, unfinished(runs) or "nothing to cluster", "", "", "", ""])
        return None
    agreement = hn.over_seeds([f[3] for f in found])
    above = hn.over_seeds([f[3] - f[4] for f in found])
    by_input, high = (sum(f[k] for f in found) / len(found) for k in (5, 4))
    live = sum(f[6] for f in found) / len(found) / found[0][2]
    interval = "" if agreement.low is None else f" [{agreement.low:.2f}, {agreement.high:.2f}]"
    cells = [f"{agreement.value:.2f}{interval}", f"{high:.3f}", f"{by_input:.2f}", f"{100 * live:.0f} %", len(found)]
    shown.rows.append([model, module, f"{found[0][0]} {hn.plural(found[0][1])}", when, *cells])
    return agreement, above
