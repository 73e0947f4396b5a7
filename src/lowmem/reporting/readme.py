"""The README's selection of verdicts, written from the committed overnight report so that the two cannot differ.

The README holds the ids of the selected claims in a comment; the text between it and the closing comment is generated here.
"""

import re
from pathlib import Path

from lowmem.errors import Failed, Misuse, nearest
from lowmem.files import read_json, write_text
from lowmem.reporting import claims, report_evidence
from lowmem.reporting.values import Value, text
from lowmem.reporting.verdicts import WORDS

BLOCK = re.compile(r"(<!-- verdicts\n(.*?)\n-->\n).*?(<!-- /verdicts -->)", re.DOTALL)
TIER = "overnight"


def update(root: Path) -> Path:
    """Write the block anew from the committed report's claims; returns the README's path."""
    path = root / "README.md"
    write_text(path, renewed(root, path.read_text(encoding="utf-8")))
    return path


def renewed(root: Path, text: str) -> str:
    """The README's text with the block as claims.json has it now."""
    source = root / report_evidence.COMMITTED / TIER / "claims.json"
    if not source.is_file():
        raise Failed(
            f"no {source}; run `lowmem report --archived --tier {TIER}` and copy reports/{TIER}/archived to its folder"
        )
    found = BLOCK.search(text)
    if not found:
        raise Misuse("README.md has no <!-- verdicts ... --> block; put it back from its history")
    trained = report_evidence.trained(root, TIER, runs(root))
    told = "\n".join([trained, "", f"- {phase(root)}", f"- {location(root)}", f"- {placebo(root)}", ""])
    made = block(read_json(source), found[2].split(), told)
    return text[: found.start()] + found[1] + made + found[3] + text[found.end() :]


def phase(root: Path) -> str:
    """How far Adam-mini is behind AdamW by length of training, from extra_gap_phase."""
    values = values_of(root, "extra_gap_phase")
    told = [f"{text(values[f'gap.usual.{steps}.0.006'], True, 3)} after {steps:,} steps" for steps in (813, 2440, 8130)]
    return (
        "How far Adam-mini is behind depends on how long one trains: with a Llama of 42 thousand parameters and one rate for "
        f"both, its loss minus AdamW's is {', '.join(told)} (nat per byte, 95 % interval)."
    )


def location(root: Path) -> str:
    """What is left of the early deficit where one kind of tensor keeps AdamW's second moment, from extra_gap_location."""
    values = values_of(root, "extra_gap_location")
    gap = {name: text(values[f"gap.{name}"], True, 3) for name in ("none", "query_key", "mlp", "tables")}
    seeds = values["gap.none"]["n"]
    return (
        f"Of the deficit after 813 steps ({gap['none']} over {seeds} seeds) one second moment per weight in query and key "
        f"alone leaves {gap['query_key']}, in the MLP {gap['mlp']}, in embedding and output {gap['tables']}."
    )


def placebo(root: Path) -> str:
    """How much worse Adam-mini trains with other blocks of the same sizes, from extra_partition_placebo."""
    values = values_of(root, "extra_partition_placebo")
    more = {name: text(values[f"excess.{name}.s2440"], True, 3) for name in ("random", "input")}
    return (
        f"Where its blocks lie matters: as many random blocks of the same sizes cost {more['random']} more after 2,440 steps, "
        f"rows taken by input neuron {more['input']}."
    )


def values_of(root: Path, figure: str) -> dict[str, Value]:
    """The values of a figure of the committed report."""
    return read_json(root / report_evidence.COMMITTED / TIER / "figures" / f"{figure}.json")["values"]


def runs(root: Path) -> list[dict]:
    """The runs of all exhibits of the committed report, each once."""
    report = root / report_evidence.COMMITTED / TIER
    paths = sorted(path for kind in ("figures", "tables") for path in (report / kind).glob("*.json"))
    return list({run["id"]: run for path in paths for run in read_json(path)["runs"]}.values())


def block(rows: list[dict], ids: list[str], trained: str) -> str:
    """What was trained, the counts, and the table of the selected claims."""
    by_id = {row["id"]: row for row in rows}
    for id in ids:
        if id not in by_id:
            raise Misuse(f"README.md: claims.json has no claim {id!r}{nearest(id, by_id)}")
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in WORDS}
    lines = [
        trained,
        f"{len(rows)} claims: {', '.join(f'{n} {WORDS[verdict]}' for verdict, n in count.items() if n)} "
        f"([all of them]({report_evidence.COMMITTED}/{TIER}/claims.md)).",
        "Only a tier that a claim names may confirm or contradict it; the others say a direction, and a simulation fits a "
        "measured value or does not. A selection:",
        "",
        "| claim | published | ours, 95 % interval | verdict |",
        "|---|---|---|---|",
        *(line(by_id[id]) for id in ids),
    ]
    return "\n".join(lines) + "\n"


def line(row: dict) -> str:
    """One claim as a row of the table."""
    printed = f"{claims.number(row['published']['value'])} {row['published']['unit'] or ''}".strip()
    cells = [row["statement"], printed, claims.shown_value(row), WORDS[row["verdict"]]]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
