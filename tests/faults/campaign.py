"""The fault campaign: break a whole pipeline in many ways, let it go on, compare with one that nobody disturbed.

    PYTHONPATH=src:tests/support python tests/faults/campaign.py --kills 50

prints a table of the faults tried and survived. Survived means: the next call of the pipeline ends well, in bounded time,
with records and tables equal to the undisturbed ones (or, where a file was broken by hand, the fault is named in one line).
A round begins in a fresh clone; its faults hit the pipeline one after the other, wherever the last one left it, and then
it must end well.
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
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import small_pipeline as small

from lowmem.pipeline import record

STAGES = ("fetch", "prepare", "train", "exhibit", "report")
Fault = Callable[[Path, random.Random], str | None]  # breaks something in a project; what is wrong already, or None


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


# -- faults ------------------------------------------------------------------------------------------------------------


def reach(project: Path, condition: Callable[[], object]) -> None:
    """Run the pipeline until the condition holds, and kill all of it then; nothing, where it holds already."""
    if not condition():
        process = small.start(project)
        held = small.wait_until(process, condition)
        small.kill(process)
        if not held:
            raise RuntimeError(f"the pipeline ended before it could be broken: {last_line(project)}")


def trainings(process: subprocess.Popen) -> list[psutil.Process]:
    """The training processes of a running pipeline."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline()[1:5] == ["-m", "lowmem", "train", "--experiment"]:
                found.append(child)
    return found


def kill_all(stage: str) -> Fault:
    """SIGKILL to every process at a random moment of a stage, as when the power fails."""

    def fault(project: Path, chance: random.Random) -> str | None:
        process = small.start(project)
        if small.wait_until(process, lambda: small.stage(project) in (stage, "done")):
            time.sleep(chance.uniform(0, {"train": 5.0, "exhibit": 3.0, "report": 0.5}.get(stage, 1.0)))
        if process.poll() is None:
            small.kill(process)
            return None
        return None if small.finish(process) == 0 else f"it failed before the kill: {last_line(project)}"

    return fault


def killed_child(project: Path, chance: random.Random) -> str | None:
    """What the kernel does to a process that takes too much memory: SIGKILL to the training processes alone."""
    small.forget(project, "results/smoke/gpt2_sizes/done.json", "reports")
    for path in (project / "results/smoke/gpt2_sizes").rglob("record.json"):
        path.unlink()
    process = small.start(project)
    small.wait_until(process, lambda: trainings(process))
    time.sleep(chance.uniform(0, 2))
    killed = False
    while not killed and process.poll() is None:
        for child in trainings(process):
            child.kill()
            killed = True
    return "the pipeline did not notice" if small.finish(process) == 0 else None


def killed_snakemake(project: Path, chance: random.Random) -> str | None:
    """SIGKILL to Snakemake alone: the training processes live on, beside those that the next call starts."""
    small.forget(project, "results", "reports")
    process = small.start(project)
    small.wait_until(process, lambda: trainings(process))
    time.sleep(chance.uniform(0, 2))
    process.kill()
    process.wait()
    return None


def in_namespace(project: Path, mount: str) -> int:
    """Exit code of the pipeline in a mount namespace of its own, in which `mount` was done first."""
    program = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "tier=smoke"]
    command = ["unshare", "--map-root-user", "--mount", "sh", "-ec", f'{mount}; exec "$@"', "sh", *program]
    with open(project / "pipeline.log", "a") as log:
        done = subprocess.run(
            command, cwd=project, env=small.environment(project), stdout=log, stderr=subprocess.STDOUT, timeout=200
        )
    return done.returncode


def bad_results_folder(mount: str, words: str) -> Fault:
    def fault(project: Path, chance: random.Random) -> str | None:
        small.forget(project, "results", "reports")
        (project / "results").mkdir()
        since = log_length(project)
        return "the pipeline did not notice" if in_namespace(project, mount) == 0 else said(project, since, words)

    return fault


def broken(file: Path, how: str) -> None:
    """Leave half of a file, flip one bit in its middle, or put another file in its place."""
    data = file.read_bytes()
    half = len(data) // 2
    file.write_bytes(
        {
            "truncated": data[:half],
            "with a flipped bit": data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :],
            "swapped for another file": b"another file" * 1000,
        }[how]
    )


def broken_download(how: str) -> Fault:
    def fault(project: Path, chance: random.Random) -> str | None:
        reach(project, lambda: small.stage(project) != "fetch")
        broken(project / "data/raw/toytext/toytext-1.0.tgz", how)
        small.forget(project, "data/prepared", "results", "reports")
        since = log_length(project)
        if small.finish(small.start(project)) == 0:
            return None  # fetched again by itself
        problem = said(project, since, "toytext-1.0.tgz")
        small.forget(project, "data/raw")  # what the line asks for
        return problem

    return fault


def broken_checkpoint(how: str) -> Fault:
    def fault(project: Path, chance: random.Random) -> str | None:
        found = lambda: sorted((project / "results").rglob("checkpoint-*/[!.]*"))  # noqa: E731
        if small.stage(project) not in ("fetch", "prepare", "train"):
            small.forget(project, "results", "reports")
        reach(project, found)
        broken(found()[-1], how)
        return None

    return fault


def altered_record(project: Path, chance: random.Random) -> str | None:
    found = lambda: sorted((project / "results/smoke/gpt2_sizes").rglob("record.json"))  # noqa: E731
    reach(project, found)
    made = json.loads(found()[0].read_text())
    made["metrics"]["final"]["val_loss"] += 0.5
    found()[0].write_text(json.dumps(made))
    small.forget(project, "results/smoke/gpt2_sizes/done.json", "reports")
    return None


def two_at_once(project: Path, chance: random.Random) -> str | None:
    first = small.start(project)
    time.sleep(1)
    second = small.start(project)
    codes = [small.finish(first), small.finish(second)]
    return None if 0 in codes else f"both failed: {last_line(project)}"


def clock(years: int) -> Fault:
    def fault(project: Path, chance: random.Random) -> str | None:
        """Everything that was made so far looks `years` older or younger, as after the clock was set."""
        reach(project, lambda: (project / "results/smoke/lomo_event_order/done.json").is_file())
        for name in ("data/raw", "data/prepared", "results/smoke/lomo_event_order"):
            for path in (project / name).rglob("*"):
                os.utime(path, times=(time.time() + years * 365 * 86400,) * 2)
        return None

    return fault


NO_SPACE, READ_ONLY = "No space left on device", "mount -o remount,bind,ro results"
KINDS = ("truncated", "with a flipped bit", "swapped for another file")
FAULTS: dict[str, Fault] = {
    **{f"SIGKILL to all processes during {stage}": kill_all(stage) for stage in STAGES},
    "SIGKILL to the training processes alone (out of memory)": killed_child,
    "SIGKILL to Snakemake alone": killed_snakemake,
    "disk full while training": bad_results_folder("mount -t tmpfs -o size=24k tmpfs results", NO_SPACE),
    "read-only results folder": bad_results_folder(
        f"mount --bind results results; {READ_ONLY}", "Read-only file system"
    ),
    **{f"download {how}": broken_download(how) for how in KINDS},
    **{f"checkpoint {how}": broken_checkpoint(how) for how in KINDS},
    "a number in a record altered": altered_record,
    "two pipelines started in one folder": two_at_once,
    "clock set back 20 years": clock(-20),
    "clock set ahead 20 years": clock(20),
}
KILLS = tuple(FAULTS)[: len(STAGES)]
FETCH, PREPARE, TRAIN, EXHIBIT, REPORT = KILLS
SHORT = (  # for .ci/run: eight kills and seven other faults; the others take twice as long again
    (
        FETCH,
        PREPARE,
        TRAIN,
        "checkpoint with a flipped bit",
        "SIGKILL to the training processes alone (out of memory)",
        EXHIBIT,
        "two pipelines started in one folder",
    ),
    (
        "download with a flipped bit",
        "disk full while training",
        TRAIN,
        "SIGKILL to Snakemake alone",
        TRAIN,
        "a number in a record altered",
        EXHIBIT,
        REPORT,
    ),
)


def long(kills: int) -> list[tuple[str, ...]]:
    """Rounds of one kill in each stage, as many as that takes, and a round for each of the other faults."""
    rounds = [KILLS] * (kills // len(KILLS)) + [KILLS[: kills % len(KILLS)]]
    return [part for part in rounds if part] + [(name,) for name in FAULTS if name not in KILLS]


def campaign(place: Path, rounds: Sequence[Sequence[str]], seed: int) -> list[tuple[str, str | None]]:
    """[(fault, what went wrong or None)] of all rounds, in turn; says each on the way."""
    undisturbed, project, chance = small.make(place / "undisturbed"), small.make(place / "project"), random.Random(seed)
    if small.finish(small.start(undisturbed)):
        raise RuntimeError(f"the undisturbed pipeline failed: {last_line(undisturbed)}")
    rows = []
    for names in rounds:
        small.wipe(project)
        done: list[tuple[str, str | None]] = []
        try:
            for name in names:
                done.append((name, "not ended"))
                done[-1] = (name, FAULTS[name](project, chance))
            problem = ends_well(project, undisturbed)
        except (TimeoutError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            problem = f"{type(error).__name__}: {error}"
        rows += [(name, own or problem) for name, own in done]
        for name, wrong in rows[-len(done) :]:
            print(f"{name}: {wrong or 'survived'}", file=sys.stderr, flush=True)
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
    asked.add_argument("--only", action="append", choices=FAULTS, help="a round of this one; may be repeated")
    arguments = asked.parse_args()
    rounds = [(name,) for name in arguments.only] if arguments.only else long(arguments.kills)
    with tempfile.TemporaryDirectory(prefix="lowmem-faults-") as place:
        rows = campaign(Path(place), rounds, arguments.seed)
    print(table(rows))
    return int(any(problem for _, problem in rows))


if __name__ == "__main__":
    sys.exit(main())
