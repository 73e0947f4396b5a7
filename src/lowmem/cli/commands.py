"""What each sub-command does: (root of the checkout, arguments) -> exit code, or None for 0.

Each imports what it needs when it runs, so that help, plan and bad arguments answer without PyTorch.
"""

import argparse
import contextlib
import gc
import os
import resource
import sys
from pathlib import Path

from lowmem.errors import Misuse


def options(root: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """The --option pairs as a dictionary, checked like those of `snakemake --config`."""
    from lowmem.files import read_yaml
    from lowmem.pipeline import planning

    pairs = {}
    for text in arguments.option:
        name, equals, value = text.partition("=")
        if not equals:
            raise Misuse(f"--option {text}: write DATASET=SOURCE")
        if name in pairs or name == "tier":
            raise Misuse(f"--option {text}: " + ("use --tier" if name == "tier" else f"{name} is given twice"))
        pairs[name] = value
    path = root / "workflow/config/config.yaml"
    defaults = read_yaml(path)
    if not isinstance(defaults, dict):
        raise Misuse(f"{path}: write NAME: VALUE lines, or restore it")
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
    from lowmem import distributed, files, progress
    from lowmem.pipeline import estimate, record  # after the arguments are known to be good
    from lowmem.training import job, machine

    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else PyTorch's profiler says when it starts and ends
    if all("train" in run["config"] for run in selected):  # the others may measure memory
        machine.keep_memory()
    several = distributed.int_of("WORLD_SIZE", 1) > 1
    first = not several or distributed.int_of("RANK", 0) == 0  # of torchrun's processes one holds the locks for all
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
        from lowmem.memory import plan_asked

        for key in ("tier", "option", "all", "save_costs"):
            if getattr(arguments, key) != arguments.usual[key]:
                raise Misuse(
                    f"--{key.replace('_', '-')} is about a tier's runs, {arguments.model[:80]} is a model; name one of them"
                )
        asked = plan_asked.of(arguments)
        gc.set_threshold(100_000)  # looking for rings among all that is imported takes an eighth of the answer's time
        if sys.stderr.isatty():  # PyTorch takes a second or more to load
            print(f"lowmem: planning {arguments.model} ...", file=sys.stderr, flush=True)
        from lowmem.memory import plan_command

        print(plan_command.answer(arguments, *asked))
        return
    for key in arguments.usual.keys() - {"tier", "option", "all", "save_costs"}:
        if getattr(arguments, key) != arguments.usual[key]:
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
