"""Every file that a finished run leaves, broken in every way: the next call ends with equal results, or in one line.

The files are found by walking the root, so a new kind joins by itself.
"""

import json
import os
import random
import shutil

import breaking
import pytest
from campaign_counts import hold
from tiny import differences, make_root, make_run

from lowmem import kept_files
from lowmem.errors import Failed, Misuse
from lowmem.pipeline import intact, planning, record
from lowmem.training import job, loop

pytestmark = pytest.mark.slow
FLIPS = 40  # of bits, per file
RUNS = [make_run(seed=0, checkpoint_every=4), make_run(seed=1, checkpoint_every=4)]
DONE = "results/smoke/trial/done.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run is done, the other was stopped behind its checkpoint of step 8."""
    root = make_root(tmp_path_factory.mktemp("campaign") / "root")
    job.run_job(root, RUNS[:1])
    original = loop.Loop.write

    def write(self, curve, number, **columns):
        original(self, curve, number, **columns)
        if number == 10:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "write", write)
        with pytest.raises(KeyboardInterrupt):
            job.train_run(root, RUNS[1])
    planning.write_done(root, RUNS[:1], root / DONE)
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = make_root(tmp_path_factory.mktemp("undisturbed") / "root")
    job.run_job(root, RUNS)
    return root


def kept(root):
    """Every file of data/prepared and results, by kind: its name without numbers and hashes."""
    found = [path for top in ("data/prepared", "results") for path in sorted((root / top).rglob("*")) if path.is_file()]
    return [path.relative_to(root) for path in found if not path.name.endswith(".lock")]


def next_call(root) -> str | None:
    """What the workflow does at its next call; the line that it ends in, or None when it ends well."""
    one = {"done": DONE, "runs": RUNS[:1]}
    intact.mended(root, {"trial": one}, "smoke")
    try:
        code = job.run_job(root, RUNS)
    except (Misuse, Failed) as error:
        return str(error)
    if code:
        reasons = [json.loads((record.folder(root, run) / "record.json").read_text())["reason"] for run in RUNS]
        return next(filter(None, reasons))
    planning.write_done(root, RUNS[:1], root / DONE)
    return None


def test_every_kind_of_kept_file_broken_in_every_way(finished, undisturbed, tmp_path, capsys):
    chance, counts = random.Random(28), {"with equal results": 0, "in one line": 0}
    files = kept(finished)
    kinds = {path.name for path in files}
    assert {"record.json", "curve.jsonl", "meta.json", "train.bin", "val.bin", "done.json", "step8.pt"} <= kinds
    other = (finished / files[0]).read_bytes()
    ways = ["cut", "empty", "zeros", "swapped", "gone"] + ["a bit"] * 3
    for number, (name, how) in enumerate((name, how) for name in files for how in ways):
        root = shutil.copytree(finished, tmp_path / str(number))
        path, before = root / name, (root / name).stat()
        if how == "gone":
            path.unlink()
        else:
            content = path.read_bytes()
            path.write_bytes(breaking.WAYS[how](content, chance, other) if content else b"x")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # with its old date
        line = next_call(root)
        if line is None:
            for run in RUNS:
                assert differences(root, undisturbed, run) == [], (name, how)
            counts["with equal results"] += 1
        else:
            assert "\n" not in line and len(line) < 1500 and "Error" not in line, (name, how, line)
            counts["in one line"] += 1
        assert "Traceback" not in capsys.readouterr().err
        shutil.rmtree(root)
    assert counts["with equal results"] > counts["in one line"] > 0
    what = "every file that two small runs leave, cut, emptied, zeroed, swapped, deleted or a bit flipped, with its old date"
    held = "records equal to the undisturbed ones, or one line (data that had no source to be made from again)"
    hold("kept files", what, {"files": len(files), "cases": number + 1, **counts}, held)


def test_no_flipped_bit_of_any_kept_file_passes_its_check(finished, tmp_path):
    """The checks alone, many times: without the training that follows them."""
    chance, tried = random.Random(1), 0
    for name in kept(finished):
        content = (finished / name).read_bytes()
        sealed = kept_files.seal_of(finished / name).is_file()
        if not content or not (sealed or name.suffix == ".json") or name.name == "done.json":
            continue
        path = tmp_path / name.name
        if sealed:
            shutil.copy(kept_files.seal_of(finished / name), kept_files.seal_of(path))
        for _ in range(FLIPS):
            path.write_bytes(breaking.a_bit(content, chance, b""))
            if name.suffix == ".json" and same_json(path, content):
                continue  # a blank for a blank
            with pytest.raises(Failed):
                kept_files.check(path) if sealed else kept_files.read_json(path)
            tried += 1
    assert tried > 100
    hold(
        "kept files, bits", "one flipped bit in a file that a small run leaves", {"bits": tried}, "its check finds each"
    )


def same_json(path, content: bytes) -> bool:
    try:
        return json.loads(path.read_bytes()) == json.loads(content)
    except ValueError:
        return False
