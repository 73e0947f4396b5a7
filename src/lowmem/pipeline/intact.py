"""Outputs of a pipeline that were altered since they were written: removed, so that Snakemake makes them again.

Snakemake looks at dates alone. Here each job's done.json is compared with its records, each record with its curve and arrays,
and each table, figure, verdict and page with its seal. Files that do not exist yet are ignored.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from lowmem import kept_files
from lowmem.errors import Failed
from lowmem.kept_files import Damaged
from lowmem.pipeline import planning, record


def mended(root: Path, jobs: dict[str, dict], tier: str) -> list[str]:
    """Remove the damaged ones, and what was made from them; one line for each that names what is wrong.

    Snakemake makes a file again only where something that is missing needs it.
    """
    lines, stale = [], set()
    for job in jobs.values():
        done = root / job["done"]
        if done.is_file() and (problem := job_problem(root, job, done)):
            lines.append(f"{problem}; {job['done']} is asked for again")
            done.unlink(missing_ok=True)
            stale.add(job.get("experiment"))
    for seal in seals(root / "reports" / tier):
        place = seal.with_name(seal.name.removesuffix(kept_files.SEAL))
        try:
            kept_files.check_together(place)
        except Damaged as error:
            lines.append(f"{error}; it is made again")
            removed(place)
            if "archived" in place.parts[-3:]:
                removed(root / "reports" / tier / "archived/index")
    for header in planning.exhibits(root).values() if stale else ():
        if stale & set(planning.shown_by(header, tier)):
            removed((root / planning.exhibit_files(tier, header)[0]).with_suffix(""))
    for name in ("claims", "index") if lines else ():
        removed(root / "reports" / tier / name)
    return lines


def removed(place: Path) -> None:
    """Remove the files of a seal, and the seal."""
    for path in [place.with_name(name) for name in names_in(place)] + [kept_files.seal_of(place)]:
        path.unlink(missing_ok=True)


def seals(reports: Path) -> list[Path]:
    """The seals of a tier's report, also of one drawn from archives; what is drawn so far is made anew each time."""
    folders = ("", "tables", "figures", "archived", "archived/tables", "archived/figures")
    return sorted(path for folder in folders for path in (reports / folder).glob(f"*{kept_files.SEAL}"))


def names_in(place: Path) -> Iterable[str]:
    """The files that a seal lists; where it cannot be read, those that share its name."""
    try:
        return [name for name in kept_files.sealed_hashes(place) if Path(name).stem == place.name]
    except Damaged:
        return [path.name for path in place.parent.glob(f"{place.name}.*")]


def job_problem(root: Path, job: dict, done: Path) -> str | None:
    """What is wrong with the records of a finished job, or None."""
    try:
        known = {row["id"]: row["sha256"] for row in json.loads(done.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return f"{job['done']} was altered since it was written"
    for run in job["runs"]:
        if run["id"] not in known:
            return f"{job['done']} does not name {run['id']}"
        folder = record.folder(root, run)
        try:
            kept_files.check(folder / "record.json", known[run["id"]])
            problem = record.integrity_problem(folder, record.load(folder))
        except Failed as error:
            problem = getattr(error, "short", str(error))
        if problem:
            return f"{run['id']}: {problem}"
    return None
