"""Two tasks of BIG-bench (Srivastava et al., arXiv 2206.04615), as stand-ins for SuperGLUE's WSC and MultiRC.

wsc: does the pronoun refer to this? From the task winowhy: 271 Winograd sentences, each with its pronoun and what that
refers to. The wrong answer is what it refers to in the twin sentence, which differs in a few words. SuperGLUE's WSC was
made of such sentences; which of them are in its training and validation split is not told here. multirc: is an answer
right? The 3,623 questions of MultiRC in natural_instructions/subtask058, on 510 paragraphs. Twins, and questions on one
paragraph, go to one split, drawn here. The authors ask that this data never appear in training corpora; their canary is
kept beside it.
"""

import io
import json
import random
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import BinaryIO

from lowmem.data import archives, superglue_sources
from lowmem.errors import Failed
from lowmem.progress import say

TASKS = {"wsc": "winowhy", "multirc": "subtask058_multirc_question_answering"}  # folders of the package
HELD_OUT = 6  # about every sixth group of twins, and paragraph, is for validation
TWINS = 0.6  # of their words are the same, in the same order

REASON = re.compile(
    r"(.+?) The '([^']+)' refers to (.+?) because .*", re.DOTALL
)  # sentence, pronoun, what it refers to
QUESTION = re.compile(r"Paragraph- (.+?)\s*\nQuestion: (.+?) (\(A\) .*)\.", re.DOTALL)  # paragraph, question, answers
RIGHT = re.compile(r"[A-Z](, [A-Z])*\.")  # "A, C."


def files(raw: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (file name, open stream)."""
    say(superglue_sources.REQUEST)
    found = tasks(raw)
    for name, make in (("wsc", wsc), ("multirc", multirc)):
        place = f"task.json of {TASKS[name]}"
        try:
            groups = make(found[name]["examples"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            told = f"{type(error).__name__}: {error}"
            raise Failed(f"{place} is not in the form of bigbench 1.0.0 ({told}); fetch bigbench again") from error
        for split, rows in drawn(groups).items():
            if not rows:
                raise Failed(f"{place} holds too few questions for two splits; fetch bigbench again")
            yield f"{name}.{split}.jsonl", io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())
    yield "canary.txt", io.BytesIO(f"{found['wsc'].get('canary', '')}\n".encode())


def tasks(raw: Path) -> dict[str, dict]:
    """{name: content of its task.json}, read in one pass over the archive, which is long."""
    found: dict[str, dict] = {}
    for member, stream in archives.matching(raw, "*/task.json"):
        for name, folder in TASKS.items():
            if f"/{member}".endswith(f"/{folder}/task.json"):
                with archives.damage_as_failed(raw):  # text that is no JSON, too
                    found[name] = json.loads(stream.read())
        if len(found) == len(TASKS):
            return found
    absent = next(folder for name, folder in TASKS.items() if name not in found)
    raise Failed(f"nothing in {raw} matches '*/{absent}/task.json'; delete that folder and fetch again")


def wsc(examples: list[dict]) -> list[tuple[str, list[dict]]]:
    """[(group, rows)]: each sentence with what its pronoun refers to (label 1) and what it does in the twin (label 0)."""
    sentences: dict[str, dict[tuple[str, str], None]] = {}
    for number, example in enumerate(examples, 1):  # one for each reason that somebody gave: sentences repeat
        found = REASON.fullmatch(example["input"])
        if not found:
            raise ValueError(f"example {number} names no pronoun")
        sentence = " ".join(found[1].split()).replace(" .", ".")
        sentences.setdefault(sentence, {})[found[2], found[3]] = None
    groups: list[list[str]] = []
    for sentence in sentences:  # twins follow each other
        if groups and SequenceMatcher(None, groups[-1][-1].split(), sentence.split()).ratio() > TWINS:
            groups[-1].append(sentence)
        else:
            groups.append([sentence])
    made = []
    for group in groups:
        all_names = {name for sentence in group for _, name in sentences[sentence]}
        rows = [
            {"text": sentence, "span1_text": spelt(other, sentence), "span2_text": pronoun, "label": int(other == name)}
            for sentence in group
            for pronoun, name in sentences[sentence]
            for other in (name, *sorted(all_names - {name}))
        ]
        if len(all_names) > 1:  # without a twin there is no wrong answer
            made.append((group[0], rows))
    return made


def spelt(name: str, sentence: str) -> str:
    """A name, which the task has in small letters, as the sentence spells it."""
    found = re.search(rf"\b{re.escape(name)}\b", sentence, re.IGNORECASE)
    return found[0] if found else name


def multirc(examples: list[dict]) -> list[tuple[str, list[dict]]]:
    """[(paragraph, rows)]: a row for each answer. A question with an empty answer is left out (one of 3,623 is)."""
    made: dict[str, list[dict]] = {}
    for number, example in enumerate(examples, 1):
        found, right = QUESTION.fullmatch(example["input"].strip()), "".join(example["target"])
        parts = re.split(r"(?:^| )\(([A-Z])\) ", found[3]) if found else []
        letters, answers = parts[1::2], [part.strip() for part in parts[2::2]]
        if not found or not RIGHT.fullmatch(right) or not set(re.findall("[A-Z]", right)) <= set(letters):
            raise ValueError(f"example {number} is not a question with lettered answers")
        if not all(answers):
            continue
        paragraph = " ".join(re.sub(r"Sent \d+: ", " ", found[1]).split())
        for letter, answer in zip(letters, answers, strict=True):
            row = {"paragraph": paragraph, "question": found[2], "answer": answer, "label": int(letter in right)}
            made.setdefault(paragraph, []).append(row)
    return list(made.items())


def drawn(groups: list[tuple[str, list[dict]]]) -> dict[str, list[dict]]:
    """{train, val}: whole groups go to one split, rows in an order drawn once."""
    splits: dict[str, list[dict]] = {"train": [], "val": []}
    for key, rows in groups:
        held_out = random.Random(f"split {key}").randrange(HELD_OUT) == 0
        splits["val" if held_out else "train"] += rows
    for rows in splits.values():
        random.Random(0).shuffle(rows)
    return splits
