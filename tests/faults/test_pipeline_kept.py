"""Every kind of file of a finished pipeline, broken in every way: its next call ends with equal results, or in one line.

The kinds are found by walking the folders of a pipeline that has ended, so a new one joins by itself: files in data, results,
reports and the cache whose names differ in numbers and hashes alone are of one kind. In a round some kinds are broken, then the
pipeline is called. LOWMEM_COUNT=1 goes on until each kind was broken in each way; without, two rounds.
"""

import os
import random
import re
import shutil

import breaking
import campaign
import pytest
import small_pipeline as small
from campaign_counts import WHOLE, hold

from lowmem.pipeline import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6000)]
TOPS = ("data/raw", "data/prepared", "results", "reports", "cache")
AT_ONCE, ROUNDS, SECONDS = 4, 2, 900
WAYS = [*breaking.WAYS, "gone", "a link"]


def kinds(project) -> dict[str, list]:
    """{name with numbers and hashes left out: the files that bear it}."""
    found: dict[str, list] = {}
    for top in TOPS:
        for path in sorted((project / top).rglob("*")):
            if path.is_file() and not path.name.endswith((".lock", ".tmp")):
                name = re.sub(r"[0-9a-f]{8,}|\d+", "N", path.relative_to(project).as_posix())
                found.setdefault(name, []).append(path)
    return found


def broken(path, how: str, chance: random.Random, outside) -> None:
    """Break a file, and give it its old date."""
    before = path.stat()
    if how == "gone":
        path.unlink()
        return
    if how == "a link":
        path.unlink()
        path.symlink_to(outside)
        return
    path.write_bytes(breaking.WAYS[how](path.read_bytes(), chance, outside.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A pipeline that has come to its end, and its cache of compiled kernels."""
    project = small.make(tmp_path_factory.mktemp("finished") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(project / "cache"))
        assert small.finish(small.start(project), SECONDS) == 0, campaign.last_line(project)
        yield project


def test_every_kind_of_file_of_a_finished_pipeline_broken_in_every_way(finished, tmp_path):
    chance, counts = random.Random(28), {"with equal results": 0, "in one line": 0}
    assert {"results/smoke/gptN_sizes/done.json", "reports/smoke/index.html", "reports/smoke/claims.json"} <= kinds(
        finished
    ).keys()
    waiting = [(kind, how) for kind in kinds(finished) for how in WAYS]
    chance.shuffle(waiting)
    tried, rounds, outside = 0, 0, tmp_path / "thesis.tex"
    while waiting and (WHOLE or rounds < ROUNDS):
        project = tmp_path / "project"
        shutil.copytree(finished, project, symlinks=True)
        outside.write_bytes(b"mine alone\n" * 50)
        chosen: dict[str, str] = {}
        for kind, how in waiting:
            if kind not in chosen and len(chosen) < AT_ONCE:
                chosen[kind] = how
        for kind, how in chosen.items():
            broken(chance.choice(kinds(project)[kind]), how, chance, outside)
        since = campaign.log_length(project)
        code = small.finish(small.start(project), SECONDS)
        said = (project / "pipeline.log").read_text()[since:]
        assert "Traceback" not in said and outside.read_bytes() == b"mine alone\n" * 50, (chosen, said[-2000:])
        if code:
            assert "lowmem: " in said, (chosen, said[-2000:])
        else:
            assert record.equal(finished / "results/smoke", project / "results/smoke") == [], chosen
            assert campaign.results(project) == campaign.results(finished), chosen
        counts["in one line" if code else "with equal results"] += len(chosen)
        waiting = [pair for pair in waiting if chosen.get(pair[0]) != pair[1]]
        tried, rounds = tried + len(chosen), rounds + 1
        shutil.rmtree(project)
    what = (
        "every kind of file of a finished pipeline: cut, emptied, zeroed, swapped, deleted, made a link, a bit flipped"
    )
    held = "tables, verdicts and records equal to the undisturbed ones, or one line; what a link leads to stays"
    told = {"kinds": len(kinds(finished)), "files broken": tried, **counts}
    hold("kept files, pipeline", what, told, held, part=not WHOLE)
