"""What accompanies a verdict on the page: what was trained here, the same claim at other tiers, and what others measured."""

from pathlib import Path

from lowmem.files import read_json, read_yaml
from lowmem.pipeline import experiments, planning
from lowmem.reporting.verdicts import WORDS

COMMITTED = "docs/reports"  # two tiers' reports as the repository keeps them; the pipeline writes below reports alone
TIERS = ("laptop", "overnight", "workstation", "paper")
SIZES = {"adam_mini": "39 million to 13 billion", "lomo": "7 to 65 billion", "adalomo": "7 to 65 billion"}
HOLDS, OPEN, FAILS = ("reproduced",), ("direction_only", "same_direction", "opposite_here"), ("contradicted",)
OPEN += ("simulated_fits", "simulated_differs", "inconclusive", "not_testable", "not_run")


def trained(root: Path, tier: str, runs: list[dict]) -> str:
    """What was trained, in one sentence: sizes and text of the language models, and what was fine-tuned.

    runs: the runs of the exhibits as their files list them, {"id", "status", ...}; those that are not done were not trained.
    """
    counts, seen, units, tuned = language_models(root, tier, runs, list(planning.exhibits(root).values()))
    if not counts:
        return f"No language model was trained (tier {tier})."
    text = (
        f"Trained here (tier {tier}): language models of {span(counts)} parameters, each on "
        f"{span(seen)} {' or '.join(sorted(units))}"
    )
    theirs = f", where the papers have {SIZES['adam_mini']} parameters and fine-tune {SIZES['lomo']}"
    return (
        text + (", and SmolLM2 (135 million) fine-tuned" if tuned else "") + ("." if tier == "paper" else f"{theirs}.")
    )


def at_sizes(root: Path, tier: str, runs: list[dict], rows: list[dict]) -> str:
    """', where models were trained at 31 thousand and at 135 million parameters': for the exhibits of these rows."""
    wanted = {row["exhibit"] for row in rows}
    headers = [header for header in planning.exhibits(root).values() if header["id"] in wanted]
    counts, _, _, tuned = language_models(root, tier, runs, headers)
    sizes = ([span(counts)] if counts else []) + ["135 million"] * tuned
    return f", where models were trained at {' and at '.join(sizes)} parameters" if sizes else ""


def language_models(root: Path, tier: str, runs: list[dict], headers: list[dict]) -> tuple[set, set, set, bool]:
    """(parameters, training tokens, what a token is) of the language models trained for exhibits, each a set, and whether
    SmolLM2 was fine-tuned."""
    from lowmem.reporting.numbers.losses import parameters

    done = {run["id"] for run in runs if run["status"] == "done"}
    names = {name for header in headers for name in planning.shown_by(header, tier)}
    counts, seen, units, tuned = set(), set(), set(), False
    for name in sorted(names):
        for run in experiments.runs(root, name, tier):
            if run["id"] not in done:
                continue
            config = run["config"]
            model, train = config.get("model") or {}, config.get("train") or {}
            tuned = tuned or (model.get("pretrained") == "smollm2" and bool(train.get("steps")))
            count = parameters(model) if model.get("name") in ("gpt2", "llama") and "pretrained" not in model else None
            if count and config.get("task", "").startswith("pretrain") and train.get("steps"):
                counts.add(count)
                units.add({"byte": "bytes", "char": "characters"}.get(config["data"].get("tokenizer"), "tokens"))
                seen.add(train["steps"] * train["batch_size"] * train["seq_len"])
    return counts, seen, units, tuned


def span(counts: set[int]) -> str:
    """The range as text; one value if both ends read the same."""
    return " to ".join(dict.fromkeys((spell(min(counts)), spell(max(counts)))))


def spell(count: float) -> str:
    """14000 -> '14 thousand'."""
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.2g} {word}" if count < 100 * size else f"{count / size:.0f} {word}"
    return f"{count:g}"


def by_standing(rows: list[dict]) -> list[list[dict]]:
    """The rows that hold, that are open, and that do not hold."""
    return [[row for row in rows if row["verdict"] in words] for words in (HOLDS, OPEN, FAILS)]


def standing(rows: list[dict], topics: dict[str, str], topic_of, sizes: tuple[str, ...] = ("", "", "")) -> list[str]:
    """Three sentences on one paper: what holds, what is open, what does not hold, and at which sizes (see at_sizes)."""
    holds, left, fails = by_standing(rows)
    parts = [f"{sum(topic_of(row) == key for row in holds)} on {name.lower()}" for key, name in topics.items()]
    parts = [part for part in parts if not part.startswith("0 ")]
    first = f"Holds: {len(holds)} of {len(rows)} claims" + (f" ({', '.join(parts)}){sizes[0]}." if holds else ".")
    counts = {word: sum(row["verdict"] == word for row in left) for word in OPEN}
    counted = ", ".join(f"{n} {WORDS[word]}" for word, n in counts.items() if n)
    second = f"Open: {len(left)} ({counted}){sizes[1]}." if left else "Open: none."
    named = "; ".join(f"“{row['statement'].rstrip('.')}”" for row in fails[:3])
    more = f" and {len(fails) - 3} more" if len(fails) > 3 else ""
    return [
        first,
        second,
        f"Does not hold{sizes[2]}: {named}{more}." if fails else "Does not hold: none that this tier may decide.",
    ]


def elsewhere(root: Path, tier: str, rows: list[dict]) -> dict[str, list[dict]]:
    """{claim: its rows at the other tiers that have a report, made here or else the committed one}.

    A row that rests on the same tier's runs as this page's is no second result, and is left out.
    """
    found: dict[str, list[dict]] = {}
    own = {row["id"]: row["tier"] for row in rows}
    for other in TIERS:
        path = root / "reports" / other / "claims.json"
        path = path if path.is_file() else root / COMMITTED / other / "claims.json"
        if other != tier and path.is_file():
            for row in read_json(path):
                if row["tier"] != own.get(row["id"]):
                    found.setdefault(row["id"], []).append(row)
    return found


def others(root: Path) -> dict[str, list[dict]]:
    """{claim: what other people measured that bears on it}; it decides nothing."""
    found: dict[str, list[dict]] = {}
    for entry in read_yaml(root / "data/published/independent.yaml")["entries"]:
        for id in entry["bears_on"]:
            found.setdefault(id, []).append(entry)
    return found
