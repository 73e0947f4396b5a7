"""Table 3 of LOMO: accuracy on six SuperGLUE tasks without training, with LoRA and with LOMO, and five methods more.

Columns are named after what was really asked. Rows of longer runs that are kept in data/records stand below the runs of
this report, labelled; they never fill a column of other data.
"""

from collections.abc import Iterable

from lowmem import superglue
from lowmem.drawing import fine_tuning as ft
from lowmem.drawing.curves import text, used
from lowmem.exhibit import Run, Runs, Shown, mark, printed

EXHIBIT = {
    "id": "lomo_table3",
    "paper": "lomo",
    "label": "Table 3",
    "order": 30,
    "kind": "table",
    "title": "SuperGLUE: no training, LoRA, LOMO",
    "experiments": ["superglue"],
    "also": {"paper": ["superglue_sizes"]},
    "published": "lomo.table3",
    "archived": ["laptop/superglue_long"],
}

SIZES = ("7B", "13B", "30B", "65B")


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Values: gain.lomo_lora, gain.lomo_zero, gain.lora_zero (points, mean over tasks), each also as long.<name>; premise
    above_frequent (LOMO's average over that of the most frequent answers)."""
    by_size = sizes(runs)
    own, kept = ft.grouped(by_size[0]), ft.grouped(runs.archived)
    headers = names(runs, runs.archived)
    shown = Shown(
        caption="Accuracy in percent. Last epoch: mean over seeds at the point fixed beforehand, with its 95 % interval, "
        "which allows for the questions that all seeds share; where "
        "one run stands alone, the interval of a share among its questions (Wilson), which knows nothing of other seeds. Best: "
        "best point of the grid and best epoch at one seed, on the split that is reported, as the paper prints it. Average: "
        "over the columns of a row that have a number.",
        columns=["method", "model", "runs", "shown", *headers.values(), "average"],
        rows=[],
        runs_used=used(runs),
    )
    add_published(shown, published, headers, SIZES if len(by_size) > 1 else SIZES[:1])
    groups = [(group, tier) for group in by_size]
    for source, label in (*groups, (runs.archived, "archived, longer")):
        for name in ft.METHODS:
            add_rows(shown, ft.grouped(source), name, source, label, headers)
    for source, label in ((runs, tier), (runs.archived, "archived, longer")):  # each has its own questions
        asked = dict(ft.asked(run) for run in source)
        frequent = [most(source, task) if asked.get(task) == header else "" for task, header in headers.items()]
        if any(frequent):
            shown.rows.append(["the most frequent answer", "", label, "", *frequent, ""])
    for prefix, found in (("", own), ("long.", kept)):
        for ours, theirs in (("lomo", "lora"), ("lomo", "zero"), ("lora", "zero")):
            shown.values[f"{prefix}gain.{ours}_{theirs}"] = ft.gain(found, ours, theirs)
        shown.values[f"{prefix}above_frequent"] = ft.above_frequent(found, "lomo")
    shown.deviations = deviations(list(runs), runs.archived, headers)
    return shown


def sizes(runs: Runs) -> list[list[Run]]:
    """The runs of each model: those of the experiment superglue first, which the values speak of."""
    found: dict[str, list[Run]] = {"": []}
    for run in runs:
        found.setdefault("" if run.experiment == "superglue" else model_of(run), []).append(run)
    return list(found.values())


def names(*groups: list[Run]) -> dict[str, str]:
    """{task: header}: what the first group that has the task really asked; the task's own name where none has it."""
    headers = dict(ft.TASKS)
    for group in reversed(groups):
        for run in group:
            task, name = ft.asked(run)
            headers[task] = name
    return headers


def add_rows(shown: Shown, found: dict, name: str, source: list[Run], label: str, headers: dict) -> None:
    """One row for the last epoch and, for what trains, one for the best; none for a method that is not planned."""
    if not any(other == name for _, other in found):
        return
    asked = dict(ft.asked(run) for run in source)
    # a column shows one set of data; what was asked of another set is not in the average either
    seen = {key: points for key, points in found.items() if asked[key[0]] == headers[key[0]]}
    seeds = {run.seed for (_, other), points in found.items() if other == name for run in ft.first(points)}
    rows = [
        (
            "as it is" if name == "zero" else "last epoch" if len(seeds) > 1 else "last epoch, one seed",
            lambda points: ft.among_questions(ft.last(ft.first(points)), [ft.first(points)]),
            ft.average(seen, name),
        )
    ]
    if name != "zero":
        rows.append(("best, one seed", ft.best, None))
    for kind, number, average in rows:
        cells = []
        for task, header in headers.items():
            if (task, name) not in found:
                cells.append(ft.needs(task) if task not in asked else "not run: not planned")
            elif asked[task] != header:
                cells.append(f"other data: {asked[task]}")
            else:
                cells.append(text(number(found[task, name]), digits=1))
        model = next((model_of(run) for run in source), "")
        shown.rows.append([ft.METHODS[name], model, label, kind, *cells, text(average, digits=1) if average else ""])


def model_of(run: Run) -> str:
    """The model as a reader should know it."""
    weights = run.config["model"].get("pretrained")
    if weights == "smollm2":
        return "SmolLM2-135M-Instruct, de-quantised from 4 bits"
    return weights or "fresh weights, bytes"


def most(runs: Iterable[Run], task: str) -> str:
    """Accuracy of always giving the most frequent answer to the questions of these runs."""
    found = (run.final("most") for run in runs if ft.asked(run)[0] == task)
    return next((f"{share:.1f}" for share in found if share is not None), "")


def add_published(shown: Shown, published: dict, headers: dict, rows: tuple[str, ...]) -> None:
    """Every size as published values, some of them as rows."""
    for size in SIZES:
        for name, theirs in ft.PUBLISHED.items():
            cells = []
            for task, header in zip((*ft.TASKS.values(), "Avg"), (*headers.values(), "Avg"), strict=True):
                found = printed(published, task, method=theirs, params=size)
                shown.published += mark(f"{ft.METHODS[name]}, LLaMA-{size}, {task}", found)
                number = "" if found is None else f"{found['value']:.1f}"
                cells.append(number if header == task else f"{number} on {task}")
            if size in rows:
                shown.rows.append([ft.METHODS[name], f"LLaMA-{size}", "published", "best, one seed", *cells])


def deviations(own: list[Run], kept: list[Run], headers: dict) -> list[str]:
    """What differs from the paper, read off the configurations."""
    told = []
    for label, group in (("This report", own), ("Archived runs", kept)):
        trained = [run for run in group if run.config["train"]["steps"]]
        if not trained:
            continue
        train, measure = trained[0].config["train"], trained[0].config.get("measure", {})
        sizes = [measure.get(f"{split}_examples", 1000) for split in ("train", "val")]
        longest = measure.get("longest") or train.get("seq_len")
        told.append(
            f"{label}: {model_of(trained[0])}; {train['steps']} steps of {train['batch_size']} (paper: 630 of 16); at most "
            f"{sizes[0]} training and {sizes[1]} validation examples; questions of at most {longest} tokens where there are "
            f"enough; seeds: {seeds_of(trained)} (paper: 1). Learning rates: {rates_of(trained)}."
        )
    if any(run.config["data"]["dataset"] == "bigbench" for run in (*own, *kept)):
        told.append(f"{superglue.REQUEST}.")
    stand_ins = [name for name in headers.values() if " (for " in name]
    if stand_ins:
        real = "superglue=hub or superglue_dir=DIR runs the real tasks"
        told.append(f"Stand-ins, not SuperGLUE data: {', '.join(stand_ins)}; {real}.")
    told.append(
        "LoRA with LOMO on the base weights is in Figure 3. Methods that the paper's table lacks are ours to add."
    )
    told.append(
        "A text that is too long starts later; the official code cuts its end, and with it the question. The space before an "
        "answer belongs to the answer, as the tokenizer expects."
    )
    return told


def seeds_of(trained: list[Run]) -> str:
    """How many seeds, by method where they differ: "3 for LoRA, LOMO; 1 for AdamW"."""
    seeds: dict[str, set[int]] = {}
    for run in trained:
        seeds.setdefault(ft.METHODS[ft.method(run)[0]], set()).add(run.seed)
    counts: dict[int, list[str]] = {}
    for name, found in seeds.items():
        counts.setdefault(len(found), []).append(name)
    if len(counts) == 1:
        return str(next(iter(counts)))
    return "; ".join(f"{count} for {', '.join(names)}" for count, names in sorted(counts.items(), reverse=True))


def rates_of(trained: list[Run]) -> str:
    """The rates of each method: "LoRA 0.0005, LOMO 0.03"."""
    rates: dict[str, list[str]] = {}
    for run in trained:
        found = rates.setdefault(ft.METHODS[ft.method(run)[0]], [])
        found += [rate for rate in [f"{run.config['optimizer']['lr']:g}"] if rate not in found]
    return ", ".join(f"{name} {' or '.join(found)}" for name, found in rates.items())
