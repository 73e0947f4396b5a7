"""Check whether records can be trusted: recompute hashes, report drift of code and data, run a sample again and compare."""

import collections
import datetime
import functools
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from lowmem import provenance
from lowmem.errors import Failed, Misuse, nearest
from lowmem.files import safe_names, write_json
from lowmem.pipeline import archive, experiments, record
from lowmem.pipeline.accept import accept
from lowmem.provenance import neutral


def check(root: Path, path: Path) -> tuple[str, str]:
    """(state, why) of one run folder. State: "whole", "drifted" (code or data changed since), or "damaged".

    Whole is also what was made by code whose changes since then were shown to leave results equal; then `why` says so.
    """
    try:
        found = record.load(path)
        experiments.check(root, found, "record", Path("record.json"))
    except (Failed, Misuse) as error:
        return "damaged", getattr(error, "short", str(error))
    problem = record.integrity_problem(path, found)
    if problem is None and experiments.config_hash({**found["config"], "seed": found["seed"]}) != found["config_hash"]:
        problem = "config_hash is not that of its configuration"
    if problem:
        return "damaged", problem
    try:
        changed, way = neutral.drifted(root, found["code"]["files"], found["config"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return "damaged", f"its configuration cannot be read ({type(error).__name__})"
    if changed:
        return "drifted", ", ".join(changed)
    reruns = min((len(one["runs"]) for one in way), default=0)
    return "whole", f"code changed since; {reruns} rerun{'s' * (reruns > 1)} bit-equal" if way else ""


def folders(root: Path, places: list[Path], tier: str | None = None) -> list[Path]:
    """Run folders below the places (default: results/ and the archived records, of all tiers or one), in order."""
    if not places:
        for name in archive.names(root, tier or "*"):
            archive.folder(root, name)  # unpacks it
        results, kept = root / "results", archive.home(root)
        places = [results / tier, kept / tier] if tier else [results, *([] if results in kept.parents else [kept])]
    found = sorted(path.parent for place in places for path in place.rglob("record.json"))
    if not found:
        raise Misuse(f"no record.json below {', '.join(map(str, places))}; run the pipeline first, or name a folder")
    return found


def verify(
    root: Path,
    places: list[Path],
    rerun: int = 0,
    seed: int = 0,
    minutes: float = 1.0,
    tier: str | None = None,
    accepting: bool = False,
) -> int:
    """Print what is damaged or drifted, run `rerun` cheap records again, compare; 1 when anything is wrong, else 0.

    Drift alone is not a fault: it says that the present code did not make the record. Records are run again, chosen by `seed`
    among those whose run took at most `minutes`: whole ones first, then drifted ones, which show what the changes since then
    did to the result (a difference is printed, and is not a fault of the record). accepting: run `rerun` records again of each
    code that made drifted ones, and keep those whole whose code gave the same bits (accept.py).
    """
    if tier and places:
        raise Misuse("records verify takes folders or --tier, not both")
    if (
        tier
        and tier not in experiments.tier_names(root)
        and not (root / "results" / safe_names.part(tier, "--tier")).is_dir()
    ):
        raise Misuse(f"unknown tier {tier!r}{nearest(tier, experiments.tier_names(root))}")
    if accepting and rerun < 1:
        raise Misuse("--accept needs reruns to compare; add --rerun N")
    found = {path: check(root, path) for path in folders(root, places, tier)}
    changed: dict[str, int] = {}
    proven = collections.Counter(why for state, why in found.values() if state == "whole" and why)
    for path, (state, why) in found.items():
        if state == "damaged":
            print(f"damaged: {shown(root, path)}: {why}")
        elif state == "drifted":
            for name in why.split(", "):
                changed[name] = changed.get(name, 0) + 1
    for why, count in proven.items():
        print(f"whole ({why}): {count} record{'s' * (count > 1)}")
    for name, count in sorted(changed.items(), key=lambda item: -item[1])[:20]:
        here = neutral.is_code(name) or (root / name).is_file()
        how = "is another file now than for" if here else "is not here, but was read by"
        print(f"drifted: {name} {how} {count} record{'s' * (count > 1)}")
    counts = {state: sum(one == state for one, _ in found.values()) for state in ("whole", "drifted", "damaged")}
    other = f"{counts['drifted']} made by other code or data, {counts['damaged']} damaged"
    print(f"{len(found)} records: {counts['whole']} whole, {other}")
    if accepting:
        drifted = [path for path, (state, _) in found.items() if state == "drifted"]
        differs = accept(
            root, drifted, rerun, seed, functools.partial(same_again, root), lambda p: is_cheap(p, minutes)
        )
        return int(counts["damaged"] > 0 or differs)
    chosen: list[Path] = []
    for wanted in ("whole", "drifted"):
        cheap = [path for path, (state, _) in found.items() if state == wanted and is_cheap(path, minutes)]
        chosen += random.Random(seed).sample(cheap, min(rerun - len(chosen), len(cheap)))
    if rerun and not chosen:
        print(f"none can be run again: no record took at most {minutes:g} minutes on a device that is here")
    wrong = 0
    for path in chosen:
        drifted = found[path][0] == "drifted"
        if drifted:
            print(f"made by other code or data, run with today's: {shown(root, path)}")
        wrong += not same_again(root, path) and not drifted
    return int(counts["damaged"] > 0 or wrong > 0)


def is_cheap(path: Path, minutes: float) -> bool:
    """Whether a finished run of one CPU process took at most so long."""
    found = record.load(path)
    try:
        begin, end = (datetime.datetime.fromisoformat(found[key]) for key in ("started", "ended"))
        on_cpu = (found["device"] or {}).get("type") == "cpu" and found.get("world_size", 1) == 1
        return found["status"] in record.FINAL and on_cpu and (end - begin).total_seconds() <= 60 * minutes
    except (KeyError, TypeError, AttributeError, ValueError):  # it does not say when, or on what
        return False


def same_again(root: Path, path: Path) -> str | None:
    """Run one record's configuration again, in a folder of its own, and say whether the records are equal.

    The name of the processor where they are, else None.
    """
    before = record.load(path)
    run = {key: before[key] for key in ("id", "experiment", "variant", "seed", "tier", "config", "config_hash")}
    threads = before["device"].get("threads") or 1
    run["resources"] = {"threads": threads, "mem_mb": 2000, "gpus": 0, "minutes": 30}
    with tempfile.TemporaryDirectory(prefix="lowmem-again-") as folder:
        again = Path(folder)
        for name in ("workflow", "data", "src"):
            (again / name).symlink_to((root / name).resolve())
        write_json(again / "run.json", run)
        modules = os.pathsep.join(filter(None, (str(provenance.PACKAGE.parent), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "LOWMEM_ROOT": str(again), "PYTHONPATH": modules}
        command = [sys.executable, "-m", "lowmem", "train", str(again / "run.json")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        made = record.folder(again, run)
        if not (made / "record.json").is_file():
            message = (done.stderr or done.stdout).strip().splitlines()
            print(f"could not be run again: {shown(root, path)}: {message[-1] if message else 'no message'}")
            return None
        differences, processor = record.equal(path, made), record.load(made)["device"].get("name")
    machine = before["device"].get("name")
    print(f"{'equal' if not differences else 'differs'} when run again: {shown(root, path)}")
    for line in differences[:3]:
        print(f"  {line}")
    if differences:
        print(f"  it was made on: {machine}; another processor may round differently")
    return None if differences else processor or "unknown"


def shown(root: Path, path: Path) -> str:
    """A folder relative to the root where it lies below it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
