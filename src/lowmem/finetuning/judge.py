"""Answers for a judge model, and its scores back: MT-Bench, which no number of this package replaces.

A run with measure.questions (the benchmark's question.jsonl: question_id, turns) answers every turn at its end and keeps
the answers beside its record. `lowmem records answers FOLDER` prints them in the form that FastChat's llm_judge reads.
What the judge says (its lines with question_id and score) belongs into judged.jsonl in the same folder, where
adam_mini_table3 finds it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowmem.errors import Failed
from lowmem.files import parsed_json, read_text
from lowmem.pipeline.record import load, read_arrays

if TYPE_CHECKING:
    import torch

    from lowmem.weights.pretrained import Tokenizer

SCORES = "judged.jsonl"
HIGHEST = 10  # FastChat's judge gives 1 to 10, and -1 where it could not


def lines(path: Path, *keys: str) -> list[dict]:
    """Rows of a jsonl file; Failed names the first line without one of the keys."""
    found = []
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise Failed(f"cannot read {path}: {error}; see lowmem/finetuning/judge.py for what it should hold") from error
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold the other signs that splitlines takes for ends
        if not line.strip():
            continue
        try:
            row = parsed_json(line)
            if not isinstance(row, dict):
                raise ValueError(f"it is a {type(row).__name__}")
            missing = [key for key in keys if key not in row]
        except (ValueError, RecursionError) as error:
            raise Failed(f"{path}, line {number}: no JSON object ({str(error)[:200]}); fix it") from error
        if missing:
            raise Failed(f"{path}, line {number}: no field {missing[0]!r}; fix it")
        found.append(row)
    return found


def asked(root: Path, settings: dict) -> list[dict]:
    """The questions of measure.questions, read before a run trains for hours; [] where it names no file."""
    return lines(Path(root) / settings["questions"], "question_id", "turns") if settings["questions"] else []


def questions_file(root: Path, settings: dict) -> tuple[Path, ...]:
    """The file of measure.questions, whose hash belongs into the record; empty where there is none."""
    return (Path(root) / settings["questions"],) if settings["questions"] else ()


def answers(
    model: torch.nn.Module, words: Tokenizer, questions: list[dict], settings: dict
) -> dict[str, np.ndarray] | None:
    """{"answers": jsonl as bytes}: greedy answers of at most measure.answer_tokens to every turn, earlier turns before it."""
    if not questions:
        return None
    from lowmem.finetuning import dialogues, generation  # which need PyTorch; a table that reads the scores does not

    model.eval()
    new, lines = settings["answer_tokens"], []
    for row in questions:
        turns, replies = [], []
        for text in row["turns"]:
            turns.append(["user", text])
            prompt = words.encode(dialogues.question(turns, settings["template"]), start=True)
            [answer] = generation.generate(model, [prompt[-(model.config.block_size - new) :]], new, words.end)
            replies.append(words.decode([token for token in answer if token != words.end]).strip())
            turns.append(["assistant", replies[-1]])
        lines.append(json.dumps({"question_id": row["question_id"], "choices": [{"index": 0, "turns": replies}]}))
    return {"answers": np.frombuffer("\n".join(lines).encode(), np.uint8)}


def show(folder: Path) -> None:
    """Print a run's answers, one line for each question."""
    record = load(Path(folder))
    kept = read_arrays(Path(folder), record).get("answers")
    if kept is None:
        raise Failed(f"{folder} holds no answers; set measure.questions and run it again")
    try:
        rows = [dict(parsed_json(line)) for line in kept.tobytes().decode("utf-8").splitlines()]
    except (ValueError, TypeError, RecursionError) as error:
        raise Failed(f"{folder} holds no answers that can be read ({str(error)[:200]}); run it again") from error
    for row in rows:
        print(json.dumps({**row, "model_id": record["id"], "answer_id": record["id"]}))


def judged(folder: Path | None) -> float | None:
    """Mean score that a judge gave this run; None without its file. Scores below 0 are answers it could not judge."""
    if folder is None or not (folder / SCORES).is_file():
        return None
    rows, scores = lines(folder / SCORES, "question_id", "score"), []
    seen: set[str] = set()
    for row in rows:
        score, question = row["score"], json.dumps([row["question_id"], row.get("turn")])
        if type(score) not in (int, float) or not (score <= HIGHEST):
            raise Failed(
                f"{folder / SCORES}: a score is {str(score)[:40]!r} and must be a number up to {HIGHEST}; fix it"
            )
        if question in seen:
            raise Failed(f"{folder / SCORES}: question {question[:60]} is judged twice; leave one of them")
        seen.add(question)
        scores += [score] if score >= 0 else []
    if not scores:
        raise Failed(f"{folder / SCORES} holds no score of 0 or more; judge again, or delete it")
    return sum(scores) / len(scores)
