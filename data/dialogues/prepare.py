"""Instructions with answers, and pairs of answers of which one is preferred, as flat rows of jsonl files.

Reads what the hub keeps, the package's two demonstration files, and loose *.json, *.jsonl or *.jsonl.gz files, in the
forms of Alpaca, LLaMA-Factory, UltraFeedback and HH-RLHF. Rows become

    instructions.<split>.jsonl  {"turns": [["user", text], ...], "answer": text}
    pairs.<split>.jsonl         {"turns": [...], "chosen": text, "rejected": text}
    excluded.json               {reason: how many rows were left out}

A set of pairs alone gives both: 4 of 10 training questions with their preferred answer become instructions and the
others stay pairs, the split 4:6 of the official Adam-mini script. Without a held-out part a fifth of the questions is
held out. Both cuts go by a hash of the question's text, so that no question is on two sides.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lowmem.data import archives
from lowmem.errors import Failed
from lowmem.files import parsed_json

IN_ARCHIVE = ("alpaca_en_demo.json", "dpo_en_demo.json")  # of all that a package carries
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
ENDINGS = (".json", ".jsonl", ".jsonl.gz")


def files(raw: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (file name, open stream)."""
    found = {"instructions": {"train": [], "val": []}, "pairs": {"train": [], "val": []}}
    excluded, given, rows = Counter({"empty": 0, "equal": 0, "two questions": 0}), set(), []
    for split, place, row in read(raw):
        try:
            made = flat(row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            told = f"no field {error}" if isinstance(error, KeyError) else f"{type(error).__name__} {error}"
            raise Failed(f"{place}: neither an instruction nor a pair ({told}); mend it, or leave it out") from error
        if isinstance(made, str):
            excluded[made] += 1
        else:
            rows.append((split, made))
            given.add(split)
    both = any("answer" in row for _, row in rows)
    for split, row in rows:
        number = drawn(row["turns"])
        if given != {"train", "val"}:  # one part of two, or a file that says nothing
            split = "val" if number % 5 == 0 else "train"
        if "answer" in row:
            found["instructions"][split].append(row)
            continue
        to_learn = not both and (split == "val" or number // 5 % 10 < 4)
        if to_learn:
            found["instructions"][split].append({"turns": row["turns"], "answer": row["chosen"]})
        if split == "val" or not to_learn:
            found["pairs"][split].append(row)
    if not rows:
        raise Failed(f"{raw.name} holds no instruction and no pair; left out were {dict(excluded)}")
    for part, splits in found.items():
        for split, kept in splits.items() if any(splits.values()) else ():
            if not kept:
                raise Failed(f"{raw.name}: the {split} part of its {part} is empty; add some, or another split")
            yield f"{part}.{split}.jsonl", io.BytesIO("".join(json.dumps(row) + "\n" for row in kept).encode())
    yield "excluded.json", io.BytesIO(json.dumps(excluded).encode())


def read(raw: Path) -> Iterator[tuple[str | None, str, dict]]:
    """(split that the file's name says, place for messages, row) of every row."""
    for path in sorted(p for p in raw.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if archives.is_archive(path):
            for name, stream in archives.members(path):
                if Path(name).name in IN_ARCHIVE and stream is not None:
                    with archives.damage_as_failed(path):
                        data = archives.whole(stream, name)
                    yield from parsed(Path(name).name, data)
        elif path.name.endswith(ENDINGS) and path.name != "fetched.json":
            data = path.read_bytes()
            yield from parsed(path.name, archives.unpacked(data, path.name) if path.name.endswith(".gz") else data)


def parsed(name: str, data: bytes) -> Iterator[tuple[str | None, str, dict]]:
    """Rows of one file: a JSON list, or a JSON value on each line."""
    split = "train" if name.startswith("train") else "val" if name.startswith(("val", "test")) else None
    try:
        text = data.decode("utf-8")
        rows = (
            parsed_json(text)
            if name.endswith(".json")
            else [parsed_json(line) for line in text.split("\n") if line.strip()]
        )
    except (ValueError, RecursionError) as error:
        raise Failed(f"{name} is not JSON ({error}); mend it, or leave it out") from error
    if not isinstance(rows, list):
        raise Failed(f"{name} is not a list of rows; mend it, or leave it out")
    for number, row in enumerate(rows, 1):
        yield split, f"{name}, row {number}", row


def flat(row: dict) -> dict | str:
    """A row in one of the four forms as ours; or the reason why it is left out."""
    if "instruction" in row:
        question = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
        made = {"turns": [["user", question]], "answer": row["output"].strip()}
    elif "conversations" in row:
        turns = [[ROLES[turn["from"]], turn["value"]] for turn in row["conversations"]]
        made = {"turns": turns, "chosen": row["chosen"]["value"].strip(), "rejected": row["rejected"]["value"].strip()}
    else:
        (turns, chosen), (others, rejected) = map(transcript, (row["chosen"], row["rejected"]))
        if turns != others:
            return "two questions"
        made = {"turns": turns, "chosen": chosen, "rejected": rejected}
    answers = [made[key] for key in ("answer", "chosen", "rejected") if key in made]
    if not all(answers) or not made["turns"] or not made["turns"][-1][1].strip():
        return "empty"
    return "equal" if len(answers) == 2 and answers[0] == answers[1] else made


def transcript(told: list | str) -> tuple[list, str]:
    """(turns, last answer) of a list of messages, or of HH-RLHF's text with "Human:" and "Assistant:" before the turns."""
    if isinstance(told, str):
        parts = told.replace("\n\nHuman:", "\0user\0").replace("\n\nAssistant:", "\0assistant\0").split("\0")[1:]
        messages = [[role, text.strip()] for role, text in zip(parts[::2], parts[1::2], strict=True)]
    else:
        messages = [[ROLES[message["role"]], message["content"]] for message in told]
    if not messages or messages[-1][0] != "assistant":
        raise ValueError("the last turn is not the assistant's")
    return messages[:-1], messages[-1][1].strip()


def drawn(turns: list) -> int:
    """A number that depends on the question alone."""
    return int(hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:8], 16)
