"""Parts of the report that sum up over claims or runs: how each paper stands by subject, and where the time went."""

import time
from datetime import datetime
from pathlib import Path

from lowmem import progress
from lowmem.files import read_json
from lowmem.reporting.verdicts import WORDS

TOPICS = {"cost": "Memory and speed", "training": "How well it trains", "theory": "Why it works"}


def topic(headers: dict[str, dict], row: dict) -> str:
    """Subject of a claim: that of its exhibit (header key `topic`; without one, how well it trains)."""
    return headers.get(row["exhibit"], {}).get("topic", "training")


def glance(headers: dict[str, dict], rows: list[dict], papers: dict, tier: str) -> list[dict]:
    """[{"paper", "topics": [{"key", "name", "counts", "text"}]}]: verdicts by paper and subject, in order."""
    found = []
    for paper in papers:
        topics = []
        for key, name in TOPICS.items():
            own = [row for row in rows if row["paper"] == paper and topic(headers, row) == key]
            if own:
                counts = {v: sum(row["verdict"] == v for row in own) for v in WORDS}
                later = sum(tier not in row["decides"] and bool(row["decides"]) for row in own)
                topics.append({"key": key, "name": name, "counts": counts, "text": sentence(counts, later)})
        if topics:
            found.append({"paper": paper, "topics": topics})
    return found


def sentence(counts: dict[str, int], later: int) -> str:
    """'8 of 12 reproduced, 1 contradicted, 3 not run; 5 can be decided only at a larger scale'."""
    total = sum(counts.values())
    others = [(verdict, n) for verdict, n in counts.items() if n and verdict != "reproduced"]
    parts = ", ".join(f"{n} {WORDS[verdict]}" for verdict, n in others)
    scale = f"; {'all' if later == total else later} can be decided only at a larger scale" if later else ""
    return f"{counts['reproduced']} of {total} reproduced{', ' if parts else ''}{parts}{scale}"


def spent(runs: list[dict]) -> dict:
    """{"text", "rows"}: seconds by experiment, most first. A run's time is its own, set-up and evaluation included; runs that
    measure and do not train say only when they began and ended."""
    found: dict[str, list[dict]] = {}
    for run in runs:
        if seconds(run) is not None:
            found.setdefault(run["id"].split("/")[0], []).append(run)
    rows = []
    for name, group in found.items():
        times, steps = [seconds(run) for run in group], [run["steps_s"] for run in group if run.get("steps_s")]
        share = f"{sum(steps) / sum(times):.0%}" if steps and sum(times) else ""
        row = {
            "experiment": name,
            "runs": len(group),
            "total": sum(times),
            "steps": share,
            "longest": f"{max(times):.0f}",
        }
        rows.append({**row, "seconds": f"{row['total']:,.0f}"})
    rows.sort(key=lambda row: -row["total"])
    if not rows:
        return {"text": "No run yet.", "rows": []}
    whole = sum(row["total"] for row in rows)
    half, upto = 0.0, 0
    while half < whole / 2:
        half, upto = half + rows[upto]["total"], upto + 1
    names = ", ".join(row["experiment"] for row in rows[:upto])
    text = f"{whole / 60:.0f} minutes of runs; half of it in {names}. Runs of one experiment follow each other in one process, "
    text += (
        "experiments run side by side on the cores there are. Not counted: downloads, the start of processes, drawing."
    )
    return {"text": text, "rows": rows}


def seconds(run: dict) -> float | None:
    """Wall seconds of a run; None without a record."""
    if run.get("run_s") is not None:
        return run["run_s"]
    if not run.get("started") or not run.get("ended"):
        return None
    return (datetime.fromisoformat(run["ended"]) - datetime.fromisoformat(run["started"])).total_seconds()


def closing(root: Path, tier: str, jobs: dict[str, dict], began: float) -> list[str]:
    """The last lines of a pipeline: its time, how its runs ended, and, where it decided claims, how they stand and the page.

    began: time.time() at its start.
    """
    whole = [read_json(path) for job in jobs.values() if (path := root / job["done"]).is_file()]
    counts: dict[str, int] = {}
    for row in (row for rows in whole for row in rows):
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    ended = ", ".join(f"{n} {word}" for word, n in sorted(counts.items(), key=lambda one: -one[1])) or "none"
    took = progress.duration(time.time() - began)
    lines = [f"tier {tier}: {took}; jobs with results {len(whole)} of {len(jobs)}; runs: {ended}"]
    claims, page = root / "reports" / tier / "claims.json", root / "reports" / tier / "index.html"
    if claims.is_file() and page.is_file() and page.stat().st_mtime >= began:
        rows = read_json(claims)
        verdicts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in WORDS}
        counted = ", ".join(f"{n} {WORDS[verdict]}" for verdict, n in verdicts.items() if n)
        lines += [f"{len(rows)} claims: {counted}", f"page: {page.relative_to(root)}"]
    return lines
