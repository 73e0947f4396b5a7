"""2,000 configurations at random, from schemas and from text: each is taken, or refused in one line with its file.

LOWMEM_COUNT=1 tries all of them and writes the counts; without, a tenth. Those that are small enough are run, in processes
of their own.
"""

import argparse
import contextlib
import random
import resource
import shutil
import signal
from pathlib import Path

import configurations
import edge
import pytest
import tiny
from campaign_counts import WHOLE, hold
from checkout import ROOT

from lowmem.cli import commands
from lowmem.data import fetch
from lowmem.errors import Failed, Misuse
from lowmem.pipeline import planning
from lowmem.reporting import claims

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
KINDS = {"run file": 300, "experiment": 850, "tier": 400, "sources": 200, "claims": 150, "switches": 100}
SAID = {
    "run file": "run files, made from their schemas or changed as text; small ones are run",
    "experiment": "files of experiments, made from their schema or changed as text",
    "tier": "files of tiers, made from their schema or changed as text",
    "sources": "lists of sources, made from their schema or changed as text",
    "claims": "lists of claims, made from their schema or changed as text",
    "switches": "the file of switches, made from its schema or changed as text",
}
QUICK = {
    "pretrain",
    "pretrain_stored",
    "quadratic",
    "preconditioner",
    "live_gradients",
    "state_memory",
    "sequential_steps",
}
MOST = 200  # in any number of a run that is run, and
SECONDS = 20  # of work for a configuration that is only read


class TooLong(BaseException):
    """No Exception, which a reader on the way might take for a damaged file and turn into its one line."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The real configuration, in files that may be replaced, over prepared tokens under the name of a real dataset."""
    root = tiny.make_root(tmp_path_factory.mktemp("configurations") / "root")
    (root / "data/prepared/tiny-byte").rename(root / "data/prepared/sotu-byte")
    shutil.copytree(ROOT / "workflow/config", root / "workflow/config")
    (root / "workflow/schemas").symlink_to(ROOT / "workflow/schemas")
    (root / "src").symlink_to(ROOT / "src")
    for name in ("sotu", "published", "gpt2", "records"):
        if (ROOT / "data" / name).exists():
            (root / "data" / name).symlink_to(ROOT / "data" / name)
    shutil.copy(ROOT / "data/sources.yaml", root / "data/sources.yaml")
    return root


def is_small(value) -> bool:
    """Whether a run takes a moment: no number in it is large."""
    if isinstance(value, dict):
        return all(map(is_small, value.values()))
    if isinstance(value, (list, tuple)):
        return len(value) < 60 and all(map(is_small, value))
    return not isinstance(value, int) or isinstance(value, bool) or abs(value) <= MOST


def a_run(root: Path, chance: random.Random) -> str:
    path = root / "run.json"
    for left in reversed(range(chance.choice([1, 40]))):  # every other one is drawn until one is taken
        path.write_bytes(configurations.run_file(chance))
        try:
            run = planning.read_run(root, path)
            break
        except (Misuse, Failed):
            if not left:
                raise
    if run["config"]["task"] not in QUICK or not is_small({**run["config"], "resources": None}):
        return "planned"
    shutil.rmtree(root / "results", ignore_errors=True)
    ending = edge.call(root, "train", str(path))
    if ending.finding:
        raise AssertionError(f"{ending.finding}: {ending.line}")
    if ending.code:
        raise Failed(ending.line)
    return "run"


def replaced(root: Path, name: str, schema: str, chance: random.Random):
    """The file of that name with a changed content, until the block ends."""

    @contextlib.contextmanager
    def inside():
        path = root / name
        before = path.read_bytes()
        path.write_bytes(configurations.yaml_file(ROOT / name, schema, chance))
        try:
            yield
        finally:
            path.write_bytes(before)

    return inside()


def an_experiment(root: Path, chance: random.Random) -> str:
    name = chance.choice(sorted(path.stem for path in (ROOT / "workflow/config/experiments").glob("*.yaml")))
    with replaced(root, f"workflow/config/experiments/{name}.yaml", "experiment", chance):
        planning.jobs(root, chance.choice(["smoke", "laptop", "paper"]), {}, [name])
    return "planned"


def a_tier(root: Path, chance: random.Random) -> str:
    tier = chance.choice(["smoke", "laptop", "overnight", "paper"])
    with replaced(root, f"workflow/config/tiers/{tier}.yaml", "tier", chance):
        planning.jobs(root, tier, {}, ["gpt2_sizes"])
    return "planned"


def sources(root: Path, chance: random.Random) -> str:
    with replaced(root, "data/sources.yaml", "sources", chance):
        for name in fetch.listed(root):
            entry = fetch.dataset_entry(root, name)
            fetch.parts(root, name), fetch.script(root, name)
            for source in entry["sources"]:
                fetch.choose(
                    entry, name, "package" if source["kind"] in fetch.SOURCES["package"] else source["kind"], None
                )
    return "planned"


def some_claims(root: Path, chance: random.Random) -> str:
    name = chance.choice([path.name for path in claims.files(ROOT)])
    with replaced(root, f"workflow/config/claims/{name}", "claim", chance):
        claims.load(root)
    return "planned"


def switches(root: Path, chance: random.Random) -> str:
    with replaced(root, "workflow/config/config.yaml", "config", chance):
        commands.options(root, argparse.Namespace(option=[], tier="smoke"))
    return "planned"


TRIED = {
    "run file": a_run,
    "experiment": an_experiment,
    "tier": a_tier,
    "sources": sources,
    "claims": some_claims,
    "switches": switches,
}


def ended(kind: str, root: Path, chance: random.Random) -> str:
    """How one configuration ended; TooLong or another error for what must not be."""

    def too_long(*_):
        raise TooLong(f"no end after {SECONDS} s of work")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        how = TRIED[kind](root, chance)
    except (Misuse, Failed) as error:
        text = str(error)
        assert text and "\n" not in text and len(text) <= 4000, f"not one line: {text[:300]!r}"
        how = "in one line"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 20, f"{grown >> 10} MB of memory"
    return how


@pytest.mark.parametrize("kind", KINDS)
def test_every_configuration_is_taken_or_refused_in_one_line(kind, root):
    edge.warm(
        "lowmem.training.loop", "lowmem.tasks.pretrain", "lowmem.tasks.state_memory", "lowmem.tasks.sequential_steps"
    )
    counts, findings = {"tried": 0, "in one line": 0, "planned": 0, "run": 0}, []
    for number in range(KINDS[kind] if WHOLE else KINDS[kind] // 10):
        chance = random.Random(f"{kind} {number}")
        counts["tried"] += 1
        try:
            counts[ended(kind, root, chance)] += 1
        except (Exception, TooLong) as error:
            findings.append((number, type(error).__name__, str(error)[:300]))
    assert findings == [], "\n".join(map(str, findings))
    assert counts["in one line"] > 0 < counts["planned"]
    told = {key: count for key, count in counts.items() if count}
    hold(
        f"configurations: {kind}",
        SAID[kind],
        told,
        "taken or one line; no hang, no traceback, no signal",
        part=not WHOLE,
    )
