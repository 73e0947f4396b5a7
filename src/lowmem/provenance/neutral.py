"""Code changes that were shown not to change results: records of the earlier code stay whole.

neutral.json holds {old, new, changed, runs, processor}: records made by the code `old` were run again by the code `new`, and
every number and every loss of the curves had the same bits. Only `lowmem records verify --rerun N --accept` writes it
(pipeline/accept.py); its digest reveals manual edits. Code is known by one hash over those of all files that decide a run,
so what was shown for one task, model and optimizer says nothing about another.
"""

import hashlib
from pathlib import Path

from lowmem import kept_files, provenance

FILE = provenance.PACKAGE / "provenance/neutral.json"


def entries() -> list[dict]:
    """All entries. Damaged if the file was edited by hand."""
    return kept_files.read_json(FILE)["entries"] if FILE.is_file() else []


def add(old: str, new: str, changed: list[str], runs: list[str], processor: str) -> None:
    """Note that the code `new` gave the bits of the code `old` in these runs. changed: names of the files that differ."""
    made = {"old": old, "new": new, "changed": changed, "runs": runs, "processor": processor}
    others = [one for one in entries() if (one["old"], one["new"]) != (old, new)]
    kept_files.write_json(FILE, {"entries": [*others, made]})


def code_of(files: dict[str, str | None]) -> str:
    """One hash of the code among a record's files; where a file lies does not count, so that whole modules may move."""
    hashes = sorted(str(value) for name, value in files.items() if is_code(name))
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def is_code(name: str) -> bool:
    """Whether a hashed file is code, and not data."""
    return name.startswith("src/")


def today(config: dict) -> str:
    """The hash of the code that would make a run of this configuration now."""
    return code_of(provenance.code_files(config))


def shown(old: str, new: str) -> list[dict]:
    """The entries that lead from one code to another, in order; empty where nothing shows that they give the same bits."""
    ways, known = [(old, [])], entries()
    seen = {old}
    for code, way in ways:  # grows while it is iterated
        for one in known:
            if one["old"] == code and one["new"] not in seen:
                if one["new"] == new:
                    return [*way, one]
                seen.add(one["new"])
                ways.append((one["new"], [*way, one]))
    return []


def drifted(root: Path, files: dict[str, str | None], config: dict) -> tuple[list[str], list[dict]]:
    """(names of a record's files that changed since, entries that show that the changes of code left its result equal).

    Where the entries cover every change of code, names of data are left, or none.
    """
    changed = provenance.drifted(root, files)
    way = shown(code_of(files), today(config)) if any(map(is_code, changed)) else []
    return [name for name in changed if not (way and is_code(name))], way
