"""The fault campaign: break a whole pipeline in many ways, let it go on, compare with one that nobody disturbed.

    PYTHONPATH=src:tests:tests/faults python tests/faults/campaign.py --kills 50

prints a table of the faults tried and survived. Survived means: the next call of the pipeline ends well, in bounded time,
with records and tables equal to the undisturbed ones (or, where a file was broken by hand, the fault is named in one line).
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import small_pipeline as small

from lowmem import record

STAGES = ("fetch", "prepare", "train", "exhibit", "report")


def results(project: Path) -> dict[str, bytes]:
    """The numbers of the report: csv files and verdicts."""
    reports = project / "reports/smoke"
    return {
        str(p.relative_to(reports)): p.read_bytes() for p in (*reports.rglob("*.csv"), *reports.glob("claims.json"))
    }


def ends_well(project: Path, undisturbed: Path) -> str | None:
    """Run the pipeline to its end; what is wrong then, or None."""
    if code := small.finish(small.start(project)):
        return f"exit code {code}: {last_line(project)}"
    differences = record.equal(undisturbed / "results/smoke", project / "results/smoke")
    if differences:
        return f"{len(differences)} differences, first: {differences[0]}"
    if results(project) != results(undisturbed):
        return "tables or verdicts differ"
    left = [p for p in project.rglob("*.tmp") if ".snakemake" not in p.parts and time.time() - p.stat().st_mtime > 3600]
    return f"left behind: {left[0]}" if left else None


def last_line(project: Path) -> str:
    lines = [line for line in (project / "pipeline.log").read_text().splitlines() if line.startswith("lowmem:")]
    return lines[-1] if lines else "no line of lowmem"


def said(project: Path, since: int, *words: str) -> str | None:
    """Whether a line since a place in the pipeline's log, or in its steps' logs, has these words; else what is missing."""
    text = (
        "".join(p.read_text() for p in (project / "logs").rglob("*.log"))
        + (project / "pipeline.log").read_text()[since:]
    )
    if not any(all(word in line for word in words) for line in text.splitlines()):
        return f"no line says {' '.join(words)}"
    return "a traceback was printed" if "Traceback (most recent" in text else None


def log_length(project: Path) -> int:
    path = project / "pipeline.log"
    return len(path.read_text()) if path.is_file() else 0


# -- kills -----------------------------------------------------------------------------------------------------------


def kills(project: Path, undisturbed: Path, count: int, chance: random.Random) -> list[tuple[str, str | None]]:
    """SIGKILL everything at random moments of every stage, going on after each; fresh clones until there were enough."""
    done: list[tuple[str, str | None]] = []
    while len(done) < count:
        small.wipe(project)
        for wanted in STAGES:
            if len(done) == count:
                break
            process = small.start(project)
            if not small.wait_until(process, lambda wanted=wanted: small.stage(project) in (wanted, "done")):
                small.finish(process)
                continue
            time.sleep(chance.uniform(0, {"train": 5.0, "exhibit": 3.0, "report": 0.5}.get(wanted, 1.0)))
            at = small.stage(project)
            alive = process.poll() is None
            small.kill(process)
            if alive:
                done.append((f"SIGKILL to all processes during {at}", None))
        problem = ends_well(project, undisturbed)
        if problem:
            done = [(fault, old or problem) for fault, old in done]
            break
    return done


# -- other faults: each breaks something, and returns what is wrong or None ---------------------------------------------


def killed_child(project: Path, undisturbed: Path) -> str | None:
    """What the kernel does to a process that takes too much memory: SIGKILL to the training process alone."""
    small.forget(project, "results", "reports")
    process = small.start(project)
    curves = lambda: list((project / "results").rglob("curve.jsonl"))  # noqa: E731
    small.wait_until(process, curves)
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline()[1:5] == ["-m", "lowmem", "train", "--experiment"]:
                child.kill()
    if small.finish(process) == 0:
        return "the pipeline did not notice"
    return ends_well(project, undisturbed)


def in_namespace(project: Path, mount: str) -> int:
    """Exit code of the pipeline in a mount namespace of its own, in which `mount` was done first."""
    program = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "tier=smoke"]
    command = ["unshare", "--map-root-user", "--mount", "sh", "-ec", f'{mount}; exec "$@"', "sh", *program]
    with open(project / "pipeline.log", "a") as log:
        done = subprocess.run(
            command, cwd=project, env=small.environment(project), stdout=log, stderr=subprocess.STDOUT, timeout=200
        )
    return done.returncode


def bad_results_folder(mount: str, words: str) -> Callable:
    def fault(project: Path, undisturbed: Path) -> str | None:
        small.forget(project, "results", "reports")
        (project / "results").mkdir()
        since = log_length(project)
        if in_namespace(project, mount) == 0:
            return "the pipeline did not notice"
        return said(project, since, words) or ends_well(project, undisturbed)

    return fault


def broken_download(how: str) -> Callable:
    def fault(project: Path, undisturbed: Path) -> str | None:
        file = project / "data/raw/toytext/toytext-1.0.tgz"
        data = file.read_bytes()
        if how == "truncated":
            file.write_bytes(data[: len(data) // 2])
        elif how == "with a flipped bit":
            file.write_bytes(data[:5000] + bytes([data[5000] ^ 4]) + data[5001:])
        else:
            file.write_bytes((project / "src/lowmem/train.py").read_bytes())
        small.forget(project, "data/prepared", "results", "reports")
        since = log_length(project)
        if small.finish(small.start(project)) == 0:
            problem = ends_well(project, undisturbed)  # fetched again by itself
        else:
            problem = said(project, since, "toytext-1.0.tgz")
            small.forget(project, "data/raw")  # what the line asks for
            problem = problem or ends_well(project, undisturbed)
        return problem

    return fault


def broken_checkpoint(how: str) -> Callable:
    def fault(project: Path, undisturbed: Path) -> str | None:
        small.forget(project, "results", "reports")
        process = small.start(project)
        found = lambda: sorted((project / "results").rglob("checkpoint-*/[!.]*"))  # noqa: E731
        small.wait_until(process, found)
        small.kill(process)
        file = found()[-1]
        data = file.read_bytes()
        if how == "truncated":
            file.write_bytes(data[: len(data) // 2])
        elif how == "with a flipped bit":
            file.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :])
        else:
            file.write_bytes(b"another file" * 1000)
        return ends_well(project, undisturbed)

    return fault


def altered_record(project: Path, undisturbed: Path) -> str | None:
    path = sorted((project / "results/smoke/gpt2_sizes").rglob("record.json"))[0]
    found = json.loads(path.read_text())
    found["metrics"]["final"]["val_loss"] += 0.5
    path.write_text(json.dumps(found))
    small.forget(project, "results/smoke/gpt2_sizes/done.json", "reports")
    return ends_well(project, undisturbed)


def two_at_once(project: Path, undisturbed: Path) -> str | None:
    small.wipe(project)
    first = small.start(project)
    time.sleep(1)
    second = small.start(project)
    codes = [small.finish(first), small.finish(second)]
    if 0 not in codes:
        return f"both failed: {last_line(project)}"
    return ends_well(project, undisturbed)


def clock(years: int) -> Callable:
    def fault(project: Path, undisturbed: Path) -> str | None:
        """Everything that was made so far looks `years` older or younger, as after the clock was set."""
        shift = years * 365 * 86400
        for name in ("data/raw", "data/prepared", "results/smoke/lomo_event_order"):
            for path in (project / name).rglob("*"):
                os.utime(path, times=(time.time() + shift,) * 2)
        small.forget(project, "results/smoke/gpt2_sizes", "reports")
        return ends_well(project, undisturbed)

    return fault


NO_SPACE, READ_ONLY = "No space left on device", "mount -o remount,bind,ro results"
FAULTS: dict[str, Callable[[Path, Path], str | None]] = {
    "SIGKILL to the training process alone (out of memory)": killed_child,
    "disk full while training": bad_results_folder("mount -t tmpfs -o size=24k tmpfs results", NO_SPACE),
    "read-only results folder": bad_results_folder(
        f"mount --bind results results; {READ_ONLY}", "Read-only file system"
    ),
    **{
        f"download {how}": broken_download(how)
        for how in ("truncated", "with a flipped bit", "swapped for another file")
    },
    **{
        f"checkpoint {how}": broken_checkpoint(how)
        for how in ("truncated", "with a flipped bit", "swapped for another file")
    },
    "a number in a record altered": altered_record,
    "two pipelines started in one folder": two_at_once,
    "clock set back 20 years": clock(-20),
    "clock set ahead 20 years": clock(20),
}


SHORT = (  # for .ci/run; the others take as long again
    "SIGKILL to the training process alone (out of memory)",
    "disk full while training",
    "download with a flipped bit",
    "checkpoint with a flipped bit",
    "a number in a record altered",
    "two pipelines started in one folder",
)


def campaign(place: Path, count: int, seed: int, chosen: Iterable[str] = FAULTS) -> list[tuple[str, str | None]]:
    """[(fault, what went wrong or None)] of `count` kills and of the chosen other faults; says each on the way."""
    undisturbed, project = small.make(place / "undisturbed"), small.make(place / "project")
    if small.finish(small.start(undisturbed)):
        raise RuntimeError(f"the undisturbed pipeline failed: {last_line(undisturbed)}")
    rows = kills(project, undisturbed, count, random.Random(seed)) if count else []
    if not count and (problem := ends_well(project, undisturbed)):
        raise RuntimeError(problem)
    for name in chosen:
        if rows and rows[-1][1]:  # start over after a fault that was not survived
            small.wipe(project)
            small.finish(small.start(project))
        try:
            rows.append((name, FAULTS[name](project, undisturbed)))
        except (TimeoutError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            rows.append((name, f"{type(error).__name__}: {error}"))
        print(f"{name}: {rows[-1][1] or 'survived'}", file=sys.stderr, flush=True)
    return rows


def table(rows: list[tuple[str, str | None]]) -> str:
    """Faults, how often tried, how often survived, and what went wrong."""
    counts: dict[str, list] = {}
    for fault, problem in rows:
        counts.setdefault(fault, []).append(problem)
    lines = ["| fault | tried | survived | otherwise |", "|---|---|---|---|"]
    for fault, problems in counts.items():
        wrong = next((problem for problem in problems if problem), "")
        lines.append(f"| {fault} | {len(problems)} | {sum(p is None for p in problems)} | {wrong} |")
    lines.append(f"| all | {len(rows)} | {sum(p is None for _, p in rows)} | |")
    return "\n".join(lines)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--kills", type=int, default=50)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", action="append", choices=FAULTS, help="of the other faults; may be repeated")
    arguments = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="lowmem-faults-") as place:
        rows = campaign(Path(place), arguments.kills, arguments.seed, arguments.only or FAULTS)
    print(table(rows))
    return int(any(problem for _, problem in rows))


if __name__ == "__main__":
    sys.exit(main())
