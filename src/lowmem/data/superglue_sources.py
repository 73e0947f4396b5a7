"""Which source each task of SuperGLUE comes from: `--config superglue=hub` for all, superglue_dir=DIR for what DIR holds.

bigbench=true adds what the package of BIG-bench holds (tier key `opt_in`) where those two name no source.
"""

from pathlib import Path

from lowmem.errors import Misuse, nearest
from lowmem.files import safe_names
from lowmem.progress import say

OFFICIAL = {
    "rte": "RTE",
    "boolq": "BoolQ",
    "wsc": "WSC",
    "wic": "WiC",
    "multirc": "MultiRC",
    "copa": "COPA",
}  # folder names
SOURCES = ("package", "hub", "url")
IN_BIGBENCH = ("wsc", "multirc")
REQUEST = (
    "bigbench: 358 MB, and its authors ask that this data never appear in training corpora: "
    "compare methods with it, and release no model that was trained on it"
)


def options(everything: str | None, folder: str | None, bigbench: bool | str | None = None) -> dict[str, str]:
    """{dataset: source} from the three switches; "package" and tasks that the folder lacks keep the tier's source.

    bigbench: true; "package" is what a job is told by the workflow, which has said the authors' request.
    """
    found = named(everything, folder)
    if not bigbench:
        return found
    if {f"superglue_{task}" for task in IN_BIGBENCH} <= found.keys():
        say("bigbench: superglue or superglue_dir provides the real tasks, so bigbench is not used")
        return found
    if bigbench != "package":
        say(REQUEST)
    return {**found, "bigbench": "package"}


def named(everything: str | None, folder: str | None) -> dict[str, str]:
    """{superglue_<task>: source} as superglue and superglue_dir name it."""
    if everything is not None and everything not in SOURCES:
        advice = "; for files you have: superglue_dir=DIR" if everything == "folder" else nearest(everything, SOURCES)
        raise Misuse(f"--config superglue={everything}: unknown source{advice}")
    found = {f"superglue_{task}": everything for task in OFFICIAL} if everything not in (None, "package") else {}
    if folder is None:
        return found
    present = [task for task in OFFICIAL if missing(folder, task) is None]
    if not present:
        raise Misuse(
            f"superglue_dir={folder}: {missing(folder, 'boolq')}; it holds one folder for each task, as published"
        )
    for task in OFFICIAL:
        if task not in present:
            say(f"superglue_dir: {missing(folder, task)}; {OFFICIAL[task]} keeps its default source")
    return found | {f"superglue_{task}": "folder" for task in present}


def missing(folder: str, task: str) -> str | None:
    """What a task lacks in the folder; None when both its files exist."""
    files = [safe_names.at_home(folder) / OFFICIAL[task] / f"{split}.jsonl" for split in ("train", "val")]
    return next((f"{path} is not there" for path in files if not path.is_file()), None)


def folder_of(folder: str, dataset: str) -> Path | None:
    """Where a dataset's files lie in the folder; None for a dataset that is not a task of SuperGLUE."""
    task = dataset.removeprefix("superglue_")
    known = dataset != task and task in OFFICIAL
    return safe_names.at_home(folder) / OFFICIAL[task] if known else None
