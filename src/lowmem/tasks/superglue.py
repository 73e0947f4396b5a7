"""Fine-tune a language model on one task of SuperGLUE and score it by the likelihood of the answers (LOMO, Table 3).

Training: loss on the tokens of the right answer and the end token only. Scoring: the answer whose tokens cost least in
sum, end token included, as LOMO's official code does it (score: mean ranks by the average, as the paper says). Only the
positions that predict an answer get logits, no position is padding, and what questions share is read once when they are
scored (see likelihoods.py). What each answer of each question costs in the end is kept beside the record.
"""

import json
import random
from pathlib import Path

import torch

from lowmem.errors import Failed, Misuse, nearest
from lowmem.finetuning import answer_scores, likelihoods, superglue_prompts, text_task
from lowmem.finetuning.examples import Example, loss, packed, padded
from lowmem.progress import say
from lowmem.training.task import Task

# prompts, score: see above. train_examples, val_examples: a split that is longer is sampled down to this. longest: take
# questions of at most this many tokens, longer ones only where there are too few (null: any). bucket: sort the examples of
# this many batches by length before cutting them, which saves padding where a model is compiled (1: as the paper).
# eval_tokens: in one pass of scoring. tuning: ask questions of the training file that are not trained on, instead of the
# validation file; where there are few, a quarter of the file is kept for it.
DEFAULTS = {"prompts": "code", "score": "sum", "train_examples": 1000, "val_examples": 1000, "longest": None}
DEFAULTS |= {"bucket": 1, "eval_tokens": 4096, "tuning": False}


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """Task from config keys data, model, train and measure (see DEFAULTS)."""
    train, settings = config["train"], text_task.settled(config, DEFAULTS)
    if settings["prompts"] not in superglue_prompts.SETS or settings["score"] not in ("sum", "mean"):
        raise Misuse(
            f"measure: prompts is one of {', '.join(superglue_prompts.SETS)} and score sum or mean; got {settings}"
        )
    name, part = task_name(config["data"]), config["data"].get("part")
    begun = text_task.start(config, root, device)
    paths = [begun.folder / f"{part + '.' if part else ''}{split}.jsonl" for split in ("train", "val")]
    tokenizer, limit = begun.words, begun.limit
    learned, asked_of = (slice(None), slice(None)) if not settings["tuning"] else quarters(paths[0])
    learn = examples(paths[0], name, settings, tokenizer, limit, settings["train_examples"], learned)
    held_out = examples(
        paths[not settings["tuning"]], name, settings, tokenizer, limit, settings["val_examples"], asked_of
    )
    groups = likelihoods.passes(likelihoods.trees(held_out), settings["eval_tokens"])

    def collate(chosen: list[Example]) -> dict:
        # compiled layers want few shapes
        return padded(chosen, tokenizer.end, device) if train.get("compile") else packed(chosen, device)

    # of the last evaluation, which is of the final weights unless a run was interrupted
    last: list[likelihoods.Costs] = []

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        last[:] = [likelihoods.costs(model, held_out, groups, device)]
        return answer_scores.scores(last[0], settings["score"])

    def finish(model: torch.nn.Module) -> tuple[dict, dict]:
        if not last:
            evaluate(model)
        return {}, vars(last[0])

    used = paths[:1] if settings["tuning"] else paths
    bucket, inputs = settings["bucket"], tuple(used)
    return text_task.build(
        begun.model, learn, seed, train, collate, loss, evaluate, bucket=bucket, inputs=inputs, finish=finish
    )


def quarters(path: Path) -> tuple[slice, slice]:
    """(lines to learn from, lines to ask): the last quarter. Neighbours in a file may share a text, as MultiRC's do."""
    count = len(lines_of(path))
    return slice(0, count - count // 4), slice(count - count // 4, count)


def task_name(data: dict) -> str:
    """Key of prompts.TASKS: the part of a dataset with several, else the dataset's name after superglue_."""
    name = data.get("part") or data["dataset"].removeprefix("superglue_")
    if name not in superglue_prompts.TASKS:
        raise Misuse(f"data: no prompt for {name!r}{nearest(name, superglue_prompts.TASKS)}")
    return name


def lines_of(path: Path) -> list[str]:
    """The lines of a file; Failed, with what is in its folder, when it is missing."""
    if not path.is_file():
        raise Failed(f"{path} is missing; its folder holds: {', '.join(sorted(p.name for p in path.parent.iterdir()))}")
    return path.read_text(encoding="utf-8").splitlines()


def examples(
    path: Path, name: str, settings: dict, words, limit: int, count: int, part: slice = slice(None)
) -> list[Example]:
    """At most `count` questions of a file's part as tokens, drawn as the paper does; texts too long for `limit` start later."""
    lines = list(enumerate(lines_of(path), 1))[part]
    if not lines:
        raise Failed(f"{path} holds no question of {name}; get the data again")
    longest, draw = settings["longest"], random.Random(0)
    if len(lines) > count or longest:  # with a bound on the length in random order, until there are enough
        lines = draw.sample(lines, len(lines) if longest else count)
    short: list[Example] = []
    long: list[Example] = []  # wanted only where too few are short
    for number, line in lines:
        example = tokens_of(name, line, f"{path}, line {number}", settings["prompts"], words)
        if max(map(len, example.options)) > limit:
            raise Misuse(f"{path}, line {number}: an answer alone is longer than train.seq_len {limit}; raise it")
        (long if longest and len(example.source) > longest else short).append(example)
        if len(short) == count:
            break
    chosen = (short + sorted(long, key=lambda example: len(example.source)))[:count]
    budgets = [limit - max(map(len, example.options)) + 1 for example in chosen]
    cut = sum(len(example.source) > budget for example, budget in zip(chosen, budgets, strict=True))
    found = [Example(e.source[-budget:], e.options, e.label) for e, budget in zip(chosen, budgets, strict=True)]
    if len({example.label for example in found}) == 1 and len(labels := labels_of(lines_of(path)[part])) == 1:
        raise Failed(
            f"{path}: all questions of {name} have the answer {labels.pop()}, so there is nothing to learn or score"
        )
    if cut:
        say(f"{path.name}: the text of {cut} of {len(found)} questions starts later, to fit into {limit} tokens")
    return found


def tokens_of(name: str, line: str, place: str, prompt_set: str, words) -> Example:
    """One line of a jsonl file as tokens; Failed names the line that is not a question of the task."""
    try:
        asked = superglue_prompts.question(name, json.loads(line), prompt_set)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"no {error}" if isinstance(error, KeyError) else error
        raise Failed(f"{place}: not a question of {name} ({message}); fix the file it came from") from error
    options = [[*words.encode(option), words.end] for option in asked.options]
    for k, option in enumerate(options):
        if option in options[:k]:
            alike = f"{asked.options[options.index(option)]!r} and {asked.options[k]!r}"
            raise Failed(
                f"{place}: the answers {alike} are the same tokens, so no score can distinguish them; fix or drop it"
            )
    return Example(words.encode(asked.source, start=True), options, asked.label)


def labels_of(lines: list[str]) -> set:
    """Labels that occur in lines of JSON."""
    return {json.loads(line)["label"] for line in lines}
