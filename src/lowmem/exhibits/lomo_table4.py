"""Table 4 of LOMO: settings of the SuperGLUE runs as published, of this tier, and of tier overnight with the rates it tried."""

from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import superglue as ft
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, ended, where
from lowmem.reporting.values import exact, missing

EXHIBIT = {
    "id": "lomo_table4",
    "paper": "lomo",
    "label": "Table 4",
    "order": 40,
    "kind": "table",
    "title": "Settings of the SuperGLUE runs",
    "experiments": ["superglue", "lora_lomo"],
    "also": {"overnight": ["superglue_rates"]},
    "archived": ["overnight/superglue", "overnight/superglue_rates"],
    "published": "lomo.table4",
}

METHODS = {"LOMO": "lomo", "LoRA": "lora", "LoRA + LOMO": "lora_lomo"}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: differences (settings of this tier that are not the published ones), settings (all)."""
    shown = ExhibitResult(
        caption="What the paper states, and what the configurations of this tier say; several values are a grid. Tier "
        "overnight takes the rate that a tuning experiment chose among those tried, on questions of the training file.",
        columns=[
            "runs",
            "setting",
            "published",
            f"tier {tier}",
            "same",
            "finished runs",
            "overnight",
            "tried for overnight",
        ],
        rows=[],
        deviations=[
            "LoRA has one published rate and LOMO six points; here both have grids of equal size, or one point each."
        ],
    )
    long = ft.long_runs(runs, tier)
    tuning = [run for run in (*runs, *runs.archived) if run.experiment == "superglue_rates"]
    live = [run for run in runs if run.experiment != "superglue_rates"]
    for group, setting, source, at, read in ROWS:
        found = printed(published, source, **at)
        own = [run for run in live if belongs(run, group)]
        ours = distinct(read(run) for run in own)
        theirs = listed(found["value"]) if found else None
        shown.published += published_entry(f"{group}: {setting}", found)
        same = "" if found is None or not ours else "yes" if ours == theirs else "no"
        finished_long = [
            run for run in long if belongs(run, group) and run.status == "done"
        ]  # before: no rate is chosen
        overnight = words(distinct(map(read, finished_long))) or "not run: no record"
        tried = words(distinct(map(lr, tuned(tuning, group)))) if read is lr else ""
        planned = words(ours) or "not run: not planned in this tier"
        shown.rows.append([group, setting, words(theirs), planned, same, finished(own), overnight, tried])
    compared = [row[4] for row in shown.rows if row[4]]
    there = any(map(ended, runs))
    gone = None if there else missing("not run: no record")  # settings of runs that nobody made say nothing
    for name, count in (("settings", len(compared)), ("differences", compared.count("no"))):
        shown.values[name] = gone or exact(count, "settings")
    return shown


def finished(runs: list[Run]) -> str:
    """How many of the runs with this setting are there, or why none is."""
    done = sum(run.status == "done" for run in runs)
    return f"{done} of {len(runs)}" if done or not runs else runs[0].reason


def tuned(runs: list[Run], group: str) -> list[Run]:
    """The tuning runs of a group of rows."""
    return where(runs, method=METHODS.get(group))


def belongs(run: Run, group: str) -> bool:
    """Whether a row speaks of this run."""
    trained = bool(run.config["train"].get("steps"))
    name = ft.method(run)[0]
    if group == "all":
        return trained and name in ("lora", "lomo", "lora_lomo")
    if group == "LoRA + LOMO":
        return name == "lora_lomo"
    return run.experiment == "superglue" and name == METHODS[group]


def adapter(key: str):
    return lambda run: run.config["model"]["adapter"].get(key)


def lr(run: Run) -> float:
    return run.config["optimizer"]["lr"]


def warmup(run: Run) -> float | None:
    return run.config["schedule"].get("warmup_ratio")


def clip(run: Run) -> float | None:
    return run.config["optimizer"].get("max_grad_norm") or run.config["train"].get("grad_clip")


def epochs(run: Run) -> float:
    """Steps over evaluations, since one follows each epoch."""
    return run.config["train"]["steps"] / run.config["train"]["eval_every"]


def beside(key: str):
    return lambda run: run.config["optimizer"]["beside"].get(key)


ROWS = [
    ("all", "learning-rate schedule", "common.lr_schedule", {}, lambda run: run.config["schedule"]["name"]),
    ("all", "largest gradient norm", "common.max_grad_norm", {}, clip),
    ("all", "batch size", "common.batch_size", {}, lambda run: run.config["train"]["batch_size"]),
    ("all", "epochs", "common.epochs", {}, epochs),
    ("LOMO", "learning rate", "learning_rate", {"optimizer": "LOMO"}, lr),
    ("LOMO", "warm-up ratio", "warmup_ratio", {"optimizer": "LOMO"}, warmup),
    ("LoRA", "optimizer", "optimizer", {"optimizer": "LoRA"}, lambda run: run.config["optimizer"]["name"]),
    ("LoRA", "learning rate", "learning_rate", {"optimizer": "LoRA"}, lr),
    ("LoRA", "warm-up ratio", "warmup_ratio", {"optimizer": "LoRA"}, warmup),
    ("LoRA", "rank on queries", "r_q", {"optimizer": "LoRA"}, adapter("rank")),
    ("LoRA", "rank on values", "r_v", {"optimizer": "LoRA"}, adapter("rank")),
    ("LoRA", "alpha", "alpha", {"optimizer": "LoRA"}, adapter("alpha")),
    ("LoRA + LOMO", "optimizer of LoRA", "LoRA_plus_LOMO.lora_optimizer", {}, beside("name")),
    ("LoRA + LOMO", "learning rate of LoRA", "LoRA_plus_LOMO.lora_lr", {}, beside("lr")),
    ("LoRA + LOMO", "warm-up ratio of LoRA", "LoRA_plus_LOMO.lora_warmup", {}, warmup),
    ("LoRA + LOMO", "rank", "LoRA_plus_LOMO.r_q_r_v", {}, adapter("rank")),
    ("LoRA + LOMO", "alpha", "LoRA_plus_LOMO.alpha", {}, adapter("alpha")),
    ("LoRA + LOMO", "learning rate of LOMO", "LoRA_plus_LOMO.lomo_lr", {}, lr),
    ("LoRA + LOMO", "warm-up ratio of LOMO", "LoRA_plus_LOMO.lomo_warmup", {}, warmup),
]


def listed(value) -> list:
    """A published value as a sorted list, names in our spelling."""
    found = value if isinstance(value, list) else [value]
    return sorted({"AdamW": "adamw"}.get(item, item) for item in found)


def distinct(values) -> list:
    return sorted({item for item in values if item is not None})


def words(values: list | None) -> str:
    return ", ".join(f"{item:g}" if isinstance(item, float | int) else str(item) for item in values or [])
