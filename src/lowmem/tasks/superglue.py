"""Fine-tune a language model on one task of SuperGLUE and score it by the likelihood of the answers (LOMO, Table 3).

Training: loss on the tokens of the right answer and the end token only. Scoring: the answer whose tokens cost least in
sum, end token included, as LOMO's official code does it (score: mean ranks by the average, as the paper says). Only the
positions that predict an answer get logits, and all answers of a question share one pass over its text.
"""

import json
import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem import prepare, pretrained, prompts
from lowmem.answers import Example, by_length, loss, padded, picked
from lowmem.errors import Failed, Misuse, nearest
from lowmem.progress import say
from lowmem.task import Task

# prompts, score: see above. train_examples, val_examples: a split that is longer is sampled down to this. longest: take
# questions of at most this many tokens, longer ones only where there are too few (null: any). bucket: sort the examples of
# this many batches by length before cutting them, which saves padding (1: as the paper). eval_tokens: in one pass of scoring.
DEFAULTS = {"prompts": "code", "score": "sum", "train_examples": 1000, "val_examples": 1000, "longest": None}
DEFAULTS |= {"bucket": 1, "eval_tokens": 4096}


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """Task from config keys data, model, train and measure (see DEFAULTS)."""
    train, asked = config["train"], config.get("measure", {})
    unknown = sorted(asked.keys() - DEFAULTS)
    if unknown:
        raise Misuse(f"measure: unknown key {unknown[0]!r}{nearest(unknown[0], DEFAULTS)}")
    settings = {**DEFAULTS, **asked}
    if settings["prompts"] not in prompts.SETS or settings["score"] not in ("sum", "mean"):
        raise Misuse(f"measure: prompts is one of {', '.join(prompts.SETS)} and score sum or mean; got {settings}")
    folder, name = prepare.ready(root, config["data"]), task_name(config["data"])
    part = config["data"].get("part")
    paths = [folder / f"{part + '.' if part else ''}{split}.jsonl" for split in ("train", "val")]
    model, words = pretrained.language_model(root, config["model"], device)
    limit = min(train.get("seq_len", model.config.block_size), model.config.block_size)
    learn, held_out = (
        examples(path, name, settings, words, limit, settings[f"{split}_examples"])
        for path, split in zip(paths, ("train", "val"), strict=True)
    )
    size = train["batch_size"]
    parts = size // (train.get("micro_batch_size") or size)
    groups = by_length(held_out, settings["eval_tokens"])

    def batch(index: int) -> dict[str, Tensor]:
        return padded(picked(learn, seed, index, size, parts, settings["bucket"]), words.end, device)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        return score(model, groups, settings["score"], words.end, device)

    return Task(model, batch, loss, evaluate, units=size // parts, unit="example", inputs=tuple(paths))


def task_name(data: dict) -> str:
    """Key of prompts.TASKS: the part of a dataset with several, else the dataset's name after superglue_."""
    name = data.get("part") or data["dataset"].removeprefix("superglue_")
    if name not in prompts.TASKS:
        raise Misuse(f"data: no prompt for {name!r}{nearest(name, prompts.TASKS)}")
    return name


def examples(path: Path, name: str, settings: dict, words, limit: int, count: int) -> list[Example]:
    """At most `count` questions of a split as tokens, drawn as the paper does; texts too long for `limit` start later."""
    if not path.is_file():
        raise Failed(
            f"{path} is not there; the folder holds: {', '.join(sorted(p.name for p in path.parent.iterdir()))}"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    longest, draw = settings["longest"], random.Random(0)
    if len(lines) > count or longest:  # with a bound on the length in random order, until there are enough
        places = draw.sample(range(len(lines)), len(lines) if longest else count)
    else:
        places = list(range(len(lines)))
    short: list[Example] = []
    long: list[Example] = []  # wanted only where too few are short
    for place in places:
        example = tokens_of(name, lines[place], f"{path}, line {place + 1}", settings["prompts"], words)
        if max(map(len, example.options)) > limit:
            raise Misuse(f"{path}, line {place + 1}: an answer alone is longer than train.seq_len {limit}; raise it")
        (long if longest and len(example.source) > longest else short).append(example)
        if len(short) == count:
            break
    chosen = (short + sorted(long, key=lambda example: len(example.source)))[:count]
    rooms = [limit - max(map(len, example.options)) + 1 for example in chosen]
    cut = sum(len(example.source) > room for example, room in zip(chosen, rooms, strict=True))
    found = [Example(e.source[-room:], e.options, e.label) for e, room in zip(chosen, rooms, strict=True)]
    if cut:
        say(f"{path.name}: the text of {cut} of {len(found)} questions starts later, to fit into {limit} tokens")
    return found


def tokens_of(name: str, line: str, place: str, prompt_set: str, words) -> Example:
    """One line of a jsonl file as tokens; Failed names the line that is no question of the task."""
    try:
        asked = prompts.question(name, json.loads(line), prompt_set)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else error
        raise Failed(f"{place}: not a question of {name} ({told}); mend the file it came from") from error
    options = [[*words.encode(option), words.end] for option in asked.options]
    return Example(words.encode(asked.source, start=True), options, asked.label)


# -- scoring ---------------------------------------------------------------------------------------------------------


def branching(group: list[Example], end: int, device: str) -> dict[str, Tensor]:
    """Each question once, then its options one behind the other, none of which sees another.

    tokens, positions (B, T), mask (B, 1, T, T); rows, columns, targets, option (N,): where the tokens of options are
    predicted; option counts through all options of the group.
    """
    texts, places, branches, rows, columns, targets, option = [], [], [], [], [], [], []
    for row, example in enumerate(group):
        text, place, branch = list(example.source), list(range(len(example.source))), [0] * len(example.source)
        for k, answer in enumerate(example.options):
            before = [len(example.source) - 1, *range(len(text), len(text) + len(answer) - 1)]
            rows += [row] * len(answer)
            columns += before
            targets += answer
            option += [row * len(example.options) + k] * len(answer)
            text += answer[:-1]
            place += range(len(example.source), len(example.source) + len(answer) - 1)
            branch += [k + 1] * (len(answer) - 1)
        texts.append(text)
        places.append(place)
        branches.append(branch)
    width = max(map(len, texts))

    def filled(lists: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in lists], device=device)

    branch = filled(branches, -1)  # (B, T)
    same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    mask = same & torch.ones(width, width, dtype=torch.bool, device=device).tril()
    numbers = {"rows": rows, "columns": columns, "targets": targets, "option": option}
    found = {key: torch.tensor(value, device=device) for key, value in numbers.items()}
    return {"tokens": filled(texts, end), "positions": filled(places, 0), "mask": mask[:, None], **found}


def score(model: torch.nn.Module, groups: list[list[Example]], rule: str, end: int, device: str) -> dict[str, float]:
    """val_loss (nats per token of the right answers); accuracy, first (how often the first answer was chosen) and most
    (accuracy of always giving the most frequent answer), in percent; questions (how many)."""
    chosen, labels, total, count = [], [], 0.0, 0
    for group in groups:
        at = branching(group, end, device)
        logits = model(at["tokens"], positions=at["positions"], mask=at["mask"], at=(at["rows"], at["columns"]))
        losses = F.cross_entropy(logits.float(), at["targets"], reduction="none")  # (N,)
        width = len(group[0].options)
        sums = torch.zeros(len(group) * width, device=device).index_add_(0, at["option"], losses)
        lengths = torch.bincount(at["option"], minlength=len(sums))
        ranked = (sums if rule == "sum" else sums / lengths).view(-1, width)
        chosen += ranked.argmin(dim=1).tolist()
        right = torch.tensor([row * width + example.label for row, example in enumerate(group)], device=device)
        labels += [example.label for example in group]
        total, count = total + sums[right].sum().item(), count + lengths[right].sum().item()
    hits = sum(a == b for a, b in zip(chosen, labels, strict=True))
    most = max(labels.count(label) for label in set(labels))
    share = 100 / len(labels)
    return {
        "val_loss": total / count,
        "accuracy": share * hits,
        "first": share * chosen.count(0),
        "most": share * most,
        "questions": len(labels),
    }
