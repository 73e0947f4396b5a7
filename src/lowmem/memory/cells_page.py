"""docs/planner_cells.md and the README's sentence about it: `python -m lowmem.memory.cells_page` writes both."""

from __future__ import annotations

import re
from pathlib import Path

from lowmem.analysis import stats
from lowmem.errors import Misuse
from lowmem.files import write_text
from lowmem.memory import calibration, training_cells

PAGE = "docs/planner_cells.md"
SENTENCE = re.compile(r"(<!-- planner cells -->\n).*?(<!-- /planner cells -->)", re.DOTALL)


def sentence(found: dict) -> str:
    """How many cells, and how far off."""
    all_known = training_cells.summary(found)
    known, apart = all_known["known"], all_known["held out"]
    return (
        f"Checked on {known['cells']} training steps that others measured, median error {known['median']:.1f} %; on the "
        f"{apart['cells']} of them\non which no constant was set, median {apart['median']:.1f} %, "
        f"worst {apart['worst']:.1f} %: [each of them]({PAGE}).\n"
    )


def page(found: dict) -> str:
    """The table, cell by cell, with what is behind it."""
    groups = training_cells.summary(found)
    rate, rates = training_cells.hits(found, training_cells.speed_factor, calibration.SPEED[0], calibration.SPEED[2])
    card, cards = training_cells.hits(found, training_cells.card_factor, calibration.CARD[0], calibration.CARD[2])
    again = training_cells.repeated(found)
    new = training_cells.summary({"cells": [cell for cell in found["cells"] if cell["id"] not in again]})["held out"]
    lines = ["# The planner beside what other people measured", ""]
    lines += ["| cells | how many | median error | worst |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {g['cells']} | {g['median']:.1f} % | {g['worst']:.1f} % |" for name, g in groups.items()]
    lines += [
        "",
        f"{len(again)} of the {groups['held out']['cells']} cells held out have the prediction of a tuning cell of the same",
        f"model ({', '.join(again)}); without them the median error is {new['median']:.1f} %, the worst {new['worst']:.1f} %.",
        "",
        f"The 80 % interval of speed holds {of(rate, rates)},",
        f"that of memory in use on the card {of(card, cards)}.",
        "",
        f"Held out: {found['held_out']}; written down before any prediction. Constants were set on the others alone.",
        "Both halves come from the same sources, so a new source may be further off; within a source, what was understood on",
        "one cell (which hooks hold what) helps its neighbours. That caches of cosines explain 0.5 GB of Mistral was seen in",
        "the allocated memory of fms/0 and fms/2 while the numbers were entered; fms/0 turned out to be held out. The packed",
        "Mixtral cells, four of them held out, were set aside when the tuning half had shown that experts lie otherwise in",
        "transformers 5. What the older FSDP keeps was inferred from the tuning half, not read in its source.",
        "Seven cells (mjforge) had been compared with the planner before.",
        "",
        "Measured and predicted: peak of PyTorch's allocator, GB of 1e9 bytes. Speed: measured over predicted tokens/s.",
        "",
        "| cell | model | trained | optimizer | precision | GPUs | batch | tokens | measured | predicted | error | speed | |",
        "|---|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [line(cell) for cell in found["cells"]]
    lines += ["", "## Sources", ""]
    lines += [
        f"- `{key}`: {source['who']}, <{source['address']}>. Read: {source['read']}. Versions: {source['versions']}."
        for key, source in found["sources"].items()
    ]
    return "\n".join(lines) + "\n"


def of(inside: int, count: int) -> str:
    """How many of the cells held out, with the interval of their share."""
    low, high = (round(100 * end) for end in stats.share(inside / count, count))
    return f"{inside} of {count} cells held out (95 % interval of that share {low} to {high} %, Wilson)"


def trained(cell: dict) -> str:
    """The whole model, or adapters over what."""
    if not (adapters := cell.get("adapters")):
        return "all"
    return f"LoRA {adapters['rank']}" + (f" on {adapters['base']}" if "base" in adapters else "")


def line(cell: dict) -> str:
    """One cell as a row."""
    kind, predicted = training_cells.kind(cell), cell["predicted"]
    peak = error = speed = ""
    if kind == "setting unknown":
        peak = " to ".join(f"{x / 1e9:.1f}" for x in predicted["peak_bytes"])
        kind += f": {', '.join(cell['unknown'])}"
    elif kind == "not modelled":
        kind += f": {predicted['reason']}"
    else:
        peak, error = f"{predicted['peak_bytes'] / 1e9:.2f}", f"{training_cells.error(cell):+.1f} %"
        factor = training_cells.speed_factor(cell)
        speed = "" if factor is None else f"{factor:.2f}"
    measured = f"{training_cells.measured_bytes(cell) / 1e9:.2f}"
    setting = [cell["id"], cell["model"], trained(cell), cell["optimizer"], cell.get("precision", "")]
    numbers = [cell.get("gpus", 1), cell["batch"], cell["seq_len"], measured, peak, error, speed, kind]
    return f"| {' | '.join(map(str, setting + numbers))} |"


def write(root: Path) -> None:
    """Both files, from the predictions as they stand."""
    found = training_cells.read(root)
    write_text(root / PAGE, page(found))
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if not SENTENCE.search(text):
        raise Misuse("README.md has no <!-- planner cells --> block; put it back from its history")
    write_text(readme, SENTENCE.sub(lambda m: m[1] + sentence(found) + m[2], text))


if __name__ == "__main__":
    write(Path.cwd())
