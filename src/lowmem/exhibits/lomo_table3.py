"""Table 3 of LOMO: accuracy on six SuperGLUE tasks without training, with LoRA and with LOMO, and six methods more.

Columns are named after what was really asked. The runs of tier overnight, which judge, stand above the live ones of a small
tier, which show that everything works; no row fills a column of other data.
"""

from collections.abc import Iterable

from lowmem.data import superglue_sources
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import learnable, scale
from lowmem.reporting.numbers import superglue as ft
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import missing, text

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
    "archived": ["overnight/superglue", "overnight/superglue_pilot"],
}

LONG = "overnight"
WAITING, FEW = "not run: no record", 3  # more methods than a few are named beneath the table
BESIDE = {"choice_loss": "loss (nat)", "auc": "AUC"}
PAIRS = (("lomo", "lora"), ("lomo", "zero"), ("lora", "zero"), ("lomo", "adamw"))
SIZES = ("7B", "13B", "30B", "65B")


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: gain.<ours>_<theirs> of PAIRS (points, mean over tasks), loss.<the same> (nat per question), and the premise
    adamw.above_frequent (AdamW's average over that of the most frequent answers); each also as long.<name>, from the runs
    of tier overnight."""
    long = ft.long_runs(runs, tier)
    live = [] if tier == LONG else list(runs)
    by_size = sizes(live)
    headers = names([run for run in long if run.status == "done"], live, long)
    measured = {
        (task, what): f"{ft.TASKS[task]}: {told}" for task in learnable.trained(long) for what, told in BESIDE.items()
    }
    shown = ExhibitResult(
        caption=scale.fine_tuned([*live, *long])
        + "Accuracy in percent, on the same questions for all. Last epoch: mean over seeds at the point fixed before, with its "
        "95 % interval, which has the error of the seeds and of the questions; where one run stands alone, the interval of a "
        "share among its questions (Wilson). Best: best point of the grid and best epoch at one seed, on the split that is "
        "reported, as the paper prints it. Loss: of the right answer against the others, nat per question. Not learnable: by a "
        "model of this size, says the pilot (Extra). Memory: weights, gradients and optimizer state. Average: over the columns "
        "of a row that have a number.",
        columns=["method", "model", "runs", "shown", *headers.values(), "average", *measured.values(), "memory (MB)"],
        rows=[],
    )
    add_published(shown, published, headers, SIZES if len(by_size) > 1 else SIZES[:1], len(measured))
    known = learnable.verdicts(ft.pilot_runs(runs))
    label, open_ = f"{tier}, live: judges nothing" if tier in ft.LIVE else tier, []
    for source, name in ((long, LONG), *((group, label) for group in by_size)):
        add_frequent(shown, source, name, headers, len(measured))
        found = ft.grouped(source)
        waiting = [method for method in ft.METHODS if source is long and waits(found, method)]
        for method in ft.METHODS:
            if method not in waiting:
                add_rows(shown, found, method, source, name, headers, measured, known if source is long else None)
        if waiting:
            listed = [ft.METHODS[method] for method in waiting]
            first = "; ".join(listed) if len(listed) <= FEW else f"{len(listed)} methods"
            open_.append(f"{WAITING[0].upper()}{WAITING[1:]} ({name}): {', '.join(listed)}.")
            shown.rows.append(
                [first, short(source), name, WAITING, *("not run" for _ in headers), *[""] * (2 + len(measured))]
            )
    for prefix, source in (("", list(runs)), ("long.", long)):
        found = ft.grouped(run for run in source if run.experiment == "superglue")
        for ours, theirs in PAIRS:
            pair = f"{ours}_{theirs}"
            shown.values[f"{prefix}gain.{pair}"] = ft.gain(found, ours, theirs)
            shown.values[f"{prefix}loss.{pair}"] = ft.gain(found, ours, theirs, "choice_loss")
        shown.values[f"{prefix}adamw.above_frequent"] = ft.above_frequent(found, "adamw")
    if tier in ft.LIVE:
        own = [name for name in shown.values if not name.startswith("long.")]
        shown.values |= {name: missing(ft.JUDGES_NOTHING) for name in own}
    shown.deviations = [*power(shown.values), *deviations(live, long, headers), *open_]
    return shown


def power(values: dict[str, dict]) -> list[str]:
    """What the comparison of LOMO with LoRA and AdamW can see: differences below the half-width of the interval it cannot."""
    told = []
    for theirs in ("lora", "adamw"):
        found = values[f"long.gain.lomo_{theirs}"]
        if found.get("low") is not None:
            half = (found["high"] - found["low"]) / 2
            said = "separates them" if found["low"] > 0 or found["high"] < 0 else "does not separate them"
            told.append(
                f"Overnight, LOMO minus {ft.METHODS[theirs]}: {text(found, digits=1)} points, which {said}; differences "
                f"below {half:.1f} points would not be seen."
            )
    return told


def sizes(runs: list[Run]) -> list[list[Run]]:
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


def add_frequent(shown: ExhibitResult, source: list[Run], label: str, headers: dict, blank: int) -> None:
    """What always giving the most frequent answer gets: each source has its own questions."""
    asked = dict(ft.asked(run) for run in source)
    frequent = [most(source, task) if asked.get(task) == header else "" for task, header in headers.items()]
    if any(frequent):
        shown.rows.append(["the most frequent answer", "", label, "", *frequent, *[""] * (2 + blank)])


def waits(found: dict, method: str) -> bool:
    """Whether a method is planned and none of its runs has a record: such methods share one row."""
    runs = [
        run for (_, other), points in found.items() if other == method for group in points.values() for run in group
    ]
    return bool(runs) and all(run.status == "missing" for run in runs)


def add_rows(
    shown: ExhibitResult,
    found: dict,
    name: str,
    source: list[Run],
    label: str,
    headers: dict,
    measured: dict,
    known: dict | None,
) -> None:
    """One row for the last epoch, and one for the best of what was evaluated several times; none for a method that is not
    planned. known: {task: whether the pilot calls it learnable} for the long runs, which fill `measured` too."""
    if not any(other == name for _, other in found):
        return
    asked = dict(ft.asked(run) for run in source)
    # a column shows one set of data; what was asked of another set is not in the average either
    seen = {key: points for key, points in found.items() if asked[key[0]] == headers[key[0]]}
    groups = [ft.first(points) for (_, other), points in found.items() if other == name]
    seeds = {run.seed for group in groups for run in group}
    rows = [
        (
            "as it is" if name == "zero" else "last epoch" if len(seeds) > 1 else "last epoch, one seed",
            lambda points: ft.among_questions(ft.last(ft.first(points)), [ft.first(points)]),
            ft.average(seen, name),
        )
    ]
    if name != "zero" and known is None:
        rows.append(("best, one seed", ft.best, None))
    beside = [""] * len(measured)
    if known is not None:
        beside = [
            text(ft.beside(ft.first(found[task, name]), what), digits=3) if (task, name) in found else ""
            for task, what in measured
        ]
    for kind, number, average in rows:
        cells = []
        for task, header in headers.items():
            if name != "zero" and known is not None and known.get(task) is False:
                cells.append("not learnable")
            elif (task, name) not in found:
                cells.append(ft.needs(task) if task not in asked else "not run")
            elif asked[task] != header:
                cells.append(f"other data: {asked[task]}")
            else:
                cells.append(text(number(found[task, name]), digits=1))
        model = short(source)
        told = text(average, digits=1) if average else ""
        memory = megabytes(groups) if average else ""
        shown.rows.append([ft.METHODS[name], model, label, kind, *cells, told, *beside, memory])


def megabytes(groups: list[list[Run]]) -> str:
    """What a method holds between steps and at the end of backward, as its records count it."""
    found = [run.record["memory"] for group in groups for run in group if run.status == "done" and run.record["memory"]]
    totals = {sum(m.get(part) or 0 for part in ("parameters", "gradients", "optimizer_state")) for m in found}
    return f"{max(totals) / 1e6:.0f}" if totals else ""


def model_of(run: Run) -> str:
    """The model as a reader should know it."""
    weights = run.config["model"].get("pretrained")
    if weights == "smollm2":
        return "SmolLM2-135M-Instruct"
    return weights or "fresh weights, bytes"


def short(source: list[Run]) -> str:
    """The model of these runs as a cell."""
    return next((model_of(run).removesuffix("-Instruct") for run in source), "")


def unpacked(run: Run) -> str:
    return " (de-quantised from 4 bits)" if run.config["model"].get("pretrained") == "smollm2" else ""


def most(runs: Iterable[Run], task: str) -> str:
    """Accuracy of always giving the most frequent answer to the questions of these runs."""
    found = (run.final("most") for run in runs if ft.asked(run)[0] == task)
    return next((f"{share:.1f}" for share in found if share is not None), "")


def add_published(shown: ExhibitResult, published: dict, headers: dict, rows: tuple[str, ...], blank: int) -> None:
    """Every size as published values, some of them as rows."""
    for size in SIZES:
        for name, theirs in ft.PUBLISHED.items():
            cells = []
            for task, header in zip((*ft.TASKS.values(), "Avg"), (*headers.values(), "Avg"), strict=True):
                found = printed(published, task, method=theirs, params=size)
                shown.published += published_entry(f"{ft.METHODS[name]}, LLaMA-{size}, {task}", found)
                number = "" if found is None else f"{found['value']:.1f}"
                cells.append(number if header == task else f"{number} on {task}")
            if size in rows:
                shown.rows.append(
                    [ft.METHODS[name], f"LLaMA-{size}", "published", "best, one seed", *cells, *[""] * (1 + blank)]
                )


def deviations(own: list[Run], kept: list[Run], headers: dict) -> list[str]:
    """What differs from the paper, read off the configurations."""
    told = []
    for label, group in (("This report", own), ("Overnight", kept)):
        trained = [run for run in group if run.config["train"]["steps"] and (group is own or run.status == "done")]
        if not trained:
            continue
        train, measure = trained[0].config["train"], trained[0].config.get("measure", {})
        sizes = [measure.get(f"{split}_examples", 1000) for split in ("train", "val")]
        longest = measure.get("longest") or train.get("seq_len")
        told.append(
            f"{label}: {model_of(trained[0])}{unpacked(trained[0])}; {train['steps']} steps of {train['batch_size']} "
            f"(paper: 630 of 16); at most {sizes[0]} training and {sizes[1]} validation "
            f"examples; questions of at most {longest} tokens where there are enough; "
            f"seeds: {seeds_of(trained)} (paper: 1). Learning rates: {rates_of(trained)}."
        )
    if any(run.config["data"]["dataset"] == "bigbench" for run in (*own, *kept)):
        told.append(f"{superglue_sources.REQUEST}.")
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
