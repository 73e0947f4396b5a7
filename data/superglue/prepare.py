"""One task of SuperGLUE (Wang et al., arXiv 1905.00537) as train.jsonl and val.jsonl with flat rows.

Reads the official jsonl files, plain or in their zip, and what the hub keeps of its rows. A flat row has the fields of
the hub's version and `label`, the number of the answer.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lowmem.data import archives
from lowmem.data.sources import hub
from lowmem.errors import Failed
from lowmem.files import parsed_json

LABELS = {"entailment": 0, "not_entailment": 1, False: 0, True: 1}


def files(raw: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (file name, open stream)."""
    for split in ("train", "val"):
        lines = [json.dumps(row) for row in rows(raw, split)]
        if not lines:
            raise Failed(f"{split}.jsonl of {raw.name} holds no example")
        yield f"{split}.jsonl", io.BytesIO("".join(line + "\n" for line in lines).encode())


def rows(raw: Path, split: str) -> Iterator[dict]:
    """Flat rows of a split, from whichever form the raw folder has."""
    if any(raw.glob(f"{split}-*.jsonl.gz")):
        yield from hub.documents(raw, split)
        return
    found = archives.read(raw, f"*/{split}.jsonl")
    if len(found) > 1:
        raise Failed(f"{raw.name} holds {len(found)} files {split}.jsonl ({', '.join(found)}); leave one")
    # a line ends with \n alone: JSON may hold the other signs that str.splitlines takes for ends
    for number, line in enumerate(filter(None, found.popitem()[1].split(b"\n")), 1):
        try:
            yield from flat(parsed_json(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            told = f"{type(error).__name__} {error}"
            raise Failed(
                f"{split}.jsonl of {raw.name}, line {number}: no row of this task ({told}); mend it"
            ) from error


def flat(row: dict) -> Iterator[dict]:
    """An official row as one flat row, or several: MultiRC asks questions with several answers of one passage."""
    if "questions" in row.get("passage", {}) and isinstance(row["passage"], dict):
        for question in row["passage"]["questions"]:
            for answer in question["answers"]:
                asked = {"paragraph": row["passage"]["text"], "question": question["question"]}
                yield {**asked, "answer": answer["text"], "label": int(answer["label"])}
        return
    fields = {key: value for key, value in row.items() if key not in ("idx", "label", "target", "version")}
    yield {**fields, **row.get("target", {}), "label": LABELS.get(row["label"], row["label"])}
