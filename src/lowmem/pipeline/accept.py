"""Records whose code changed since: run a sample again, and accept all of that code if every bit is the same."""

import random
from collections.abc import Callable
from pathlib import Path

from lowmem import provenance
from lowmem.pipeline import record
from lowmem.provenance import neutral


def accept(root: Path, drifted: list[Path], count: int, seed: int, again: Callable, cheap: Callable) -> int:
    """For each code that made some of these records, run `count` of its records again (all, where it made fewer).

    again(path): the processor on which a record's run gave the same bits once more, else None. cheap(path): whether it can be
    run again. Where all are equal, the change is noted (neutral.py) and the records are whole. 1 where any differed, else 0.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in drifted:
        made = record.load(path)
        if all(map(neutral.is_code, provenance.drifted(root, made["code"]["files"]))):
            codes = neutral.code_of(made["code"]["files"]), neutral.today(made["config"])
            groups.setdefault(codes, []).append(path)
    differing = 0
    for (old, new), paths in groups.items():
        needed, fitting = min(count, len(paths)), [path for path in paths if cheap(path)]
        about = f"{len(paths)} record{'s' * (len(paths) > 1)} like {record.load(paths[0])['id']}"
        if len(fitting) < needed:
            print(
                f"not shown: {about}: {len(fitting)} of the {needed} to run again are short enough on a device that is here"
            )
            continue
        chosen, processors = random.Random(seed).sample(fitting, needed), []
        for path in chosen:
            processors.append(again(path))
            if processors[-1] is None:
                break
        if None in processors:
            differing += 1
            print(f"refused: {about}: the changed code gives another result")
            continue
        files = record.load(chosen[0])["code"]["files"]
        runs = [f"{made['tier']}/{made['id']}" for made in map(record.load, chosen)]
        neutral.add(old, new, provenance.drifted(root, files), runs, processors[0])
        print(f"accepted: {about}: code changed, {needed} rerun{'s' * (needed > 1)} bit-equal")
    return int(differing > 0)
