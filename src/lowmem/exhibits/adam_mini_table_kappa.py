"""Condition numbers of dense blocks before and after Adam's preconditioner (a table of Adam-mini's early versions).

Medians over draws of the rotation and of the weights: kappa(D H) has no finite mean. The paper's cells are not known
from a readable source; what an earlier check of ours gave stands beside our numbers and is not a published value.
"""

from lowmem.analysis.stats import Estimate
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import hessian as hn
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs

EXHIBIT = {
    "id": "adam_mini_table_kappa",
    "paper": "adam_mini",
    "label": "Table (number unknown): condition numbers",
    "order": 55,
    "kind": "table",
    "topic": "theory",
    "title": "Condition numbers with and without Adam's preconditioner",
    "experiments": ["preconditioner"],
    "published": "adam_mini.table_condition_numbers",
}

OF_PAPER = ("{1, 2, 3}", "{99, 100, 101}", "{4998, 4999, 5000}")
EARLIER = {"{1, 2, 3}": 141, "{99, 100, 101}": 86, "{4998, 4999, 5000}": 81}  # own check with 200 draws, not published
COLUMNS = [
    "eigenvalues",
    "κ(H)",
    "κ(DH), singular values",
    "κ(DH), eigenvalues",
    "r",
    "r by eigenvalues",
    "tau",
    "draws",
    "κ(DH), earlier check (ours)",
]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: r.least (smallest median r of the paper's three blocks), r.least_similar, r.ill_conditioned."""
    run = runs.one(part="table")
    shown = ExhibitResult(
        caption="Blocks of 30 under a uniform rotation: median over draws [25 %, 75 %]. D = diag(1 / |Hx|), Gaussian x; "
        "r = κ(DH) / κ(H). Eigenvalues of DH are those of sqrt(D) H sqrt(D); they decide the speed of descent.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "The paper's cells are unknown. The last column is an earlier small check of ours, not a published value.",
            "Rows from '1 to 10' on (eigenvalues spaced by equal ratios) are ours: the paper's blocks are nearly "
            "diagonal or well-conditioned.",
        ],
    )
    shown.published += published_entry("definition", printed(published, "definition"))
    sets = run.final("sets") or {}
    if run.status != "done":
        shown.rows.append(["", run.reason, *[""] * (len(COLUMNS) - 2)])
    for name, row in sets.items():
        keys = ("kappa", "kappa_dh", "kappa_similar", "r", "r_similar", "tau")
        shown.rows.append([name, *[text(row[key]) for key in keys], row["draws"], EARLIER.get(name, "")])
    reason = run.reason if run.status != "done" else None
    for key in ("r", "r_similar"):
        known = [estimated(sets[name][f"{key}_interval"]) for name in OF_PAPER if name in sets]
        name = "r.least" + key.removeprefix("r")
        shown.values[name] = hn.smallest(known, reason or (None if known else "not run"), "r")
    last = sets.get("1 to 1000")
    e = last and estimated(last["r_interval"])
    shown.values["r.ill_conditioned"] = hn.value(e, reason, "r")
    return shown


def estimated(value: dict) -> Estimate:
    return Estimate(value["value"], value["low"], value["high"], value["n"], "bootstrap")


def text(quantiles: list[float]) -> str:
    """Median with quartiles; tasks/preconditioner.py keeps 5, 25, 50, 75, 95 %. Equal ones are written once."""
    _, low, middle, high, _ = quantiles
    if high - low < 1e-6 * middle:
        return f"{middle:.5g}"
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"
