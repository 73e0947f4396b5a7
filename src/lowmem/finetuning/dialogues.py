"""Dialogues as tokens: prepared rows (data/dialogues) under a template, with what was left out counted.

A template writes the turns as text and opens the answer's turn. "human" is what DeepSpeed-Chat, HH-RLHF and so the
official Adam-mini script use; "chatml" is what SmolLM2-Instruct was trained with. The end token follows an answer that
fits, and only that.
"""

import json
import random
from pathlib import Path

from lowmem.errors import Failed, Misuse
from lowmem.files import read_json
from lowmem.finetuning.examples import Example
from lowmem.finetuning.text_task import Start

# role: text around a turn; answer: what opens the answer's turn; space: what an answer begins with
HUMAN = {"system": "{}", "user": "\n\nHuman: {}", "assistant": "\n\nAssistant: {}", "answer": "\n\nAssistant:"}
CHATML = {role: f"<|im_start|>{role}\n{{}}<|im_end|>\n" for role in ("system", "user", "assistant")}
TEMPLATES = {
    "human": {**HUMAN, "space": " "},
    "chatml": {**CHATML, "answer": "<|im_start|>assistant\n", "space": ""},
}


def question(turns: list, template: str) -> str:
    """The turns as text, up to where the answer begins."""
    if template not in TEMPLATES:
        raise Misuse(f"measure.template is {template!r}; choose {' or '.join(TEMPLATES)}")
    form = TEMPLATES[template]
    return "".join(form[role].format(text.strip()) for role, text in turns) + form["answer"]


def rows(folder: Path, part: str, split: str) -> tuple[Path, list[dict]]:
    """(file, rows) of a prepared part: instructions or pairs; Failed, with what is there, when it is missing."""
    path = folder / f"{part}.{split}.jsonl"
    if not path.is_file():
        raise Failed(f"{path} is missing; its folder holds: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    return path, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def drawn(found: list, count: int | None) -> list:
    """`count` of the rows, the same for every run; all when there are fewer or count is None."""
    return found if count is None or len(found) <= count else random.Random(0).sample(found, count)


def examples(
    found: list[dict], keys: tuple[str, ...], words, template: str, limit: int, longest: int, count: int | None = None
) -> tuple[list[Example], dict[str, int]]:
    """(examples with one option for each key, counts of what was changed).

    A question of more than `longest` tokens starts later. An answer is cut, and then has no end token, where question and
    answer would have more than `limit`. Pairs whose answers are equal once cut are left out. count: at most so many rows.
    """
    if longest >= limit:
        raise Misuse(f"measure.longest {longest} leaves no room for an answer in train.seq_len {limit}; change one")
    made, counts = [], {"questions_cut": 0, "answers_cut": 0, "equal_when_cut": 0}
    for row in drawn(found, count):
        source = words.encode(question(row["turns"], template), start=True)
        counts["questions_cut"] += len(source) > longest
        source = source[-longest:]
        whole = [[*words.encode(TEMPLATES[template]["space"] + row[key]), words.end] for key in keys]
        options = [option[: limit - len(source)] for option in whole]
        if len(options) == 2 and options[0] == options[1]:
            counts["equal_when_cut"] += 1
            continue
        counts["answers_cut"] += sum(len(a) < len(b) for a, b in zip(options, whole, strict=True))
        made.append(Example(source, options, 0))
    if not made:
        raise Failed(f"no row is left: {counts}; raise train.seq_len")
    return made, {"rows": len(made), **counts}


def both_splits(
    begun: Start, part: str, keys: tuple[str, ...], settings: dict
) -> tuple[list[Example], list[Example], dict[str, int], tuple[Path, ...]]:
    """(training examples, held-out examples, counts of what was left out or cut, files read) of a prepared part.

    settings: template, longest, train_examples and val_examples of a task's `measure`.
    """
    made, counts, paths = {}, {"excluded": excluded(begun.folder)}, []
    cut = (begun.words, settings["template"], begun.limit, settings["longest"])
    for split in ("train", "val"):
        path, found = rows(begun.folder, part, split)
        made[split], counted = examples(found, keys, *cut, settings[f"{split}_examples"])
        paths.append(path)
        counts |= {f"{split}_{key}": value for key, value in counted.items()}
    return made["train"], made["val"], counts, tuple(paths)


def excluded(folder: Path) -> int:
    """How many rows data/dialogues/prepare.py left out as empty, equal or not to one question."""
    return sum(read_json(folder / "excluded.json").values())
