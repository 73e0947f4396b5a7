"""Arrays beside a record: whole or not used, bitwise equal for equal results, and read without pickle."""

from pathlib import Path

import numpy as np
import pytest

from lowmem.kept_files import Damaged
from lowmem.pipeline import record
from lowmem.reporting.runs import Outcome, Run
from lowmem.training import job

RUN = {
    "id": "toy/only/seed0",
    "experiment": "toy",
    "variant": "only",
    "seed": 0,
    "tier": "own",
    "config": {"task": "quadratic", "measure": {"blocks": {"a": {"values": [1, 2]}}, "size": 3, "horizons": [4]}},
    "config_hash": "0" * 16,
    "resources": {"threads": 1, "gpus": 0},
}
FOLDER = Path("results/own/toy/only/seed0")


@pytest.fixture
def made(tmp_path):
    assert job.run_job(tmp_path, [RUN]) == 0
    return tmp_path


def test_a_measuring_task_writes_its_arrays_and_their_hash(made):
    written = record.load(made / FOLDER)
    assert written["arrays"]["bytes"] == (made / FOLDER / "arrays.npz").stat().st_size
    loaded = record.read_arrays(made / FOLDER, written)
    assert loaded["total.single"].shape == (5,) and loaded["hessian"].dtype == np.float32
    run = Run("a", "toy", "only", 0, RUN["config"], Outcome("done", None, written, made / FOLDER))
    assert run.arrays().keys() == loaded.keys()


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_lost_or_damaged_arrays_are_not_used_and_the_run_is_done_again(made, how):
    path = made / FOLDER / "arrays.npz"
    written = record.load(made / FOLDER)
    assert record.reusable(made, RUN) is not None
    path.unlink() if how == "lost" else path.write_bytes(path.read_bytes()[:-9])
    assert record.read_arrays(made / FOLDER, written) == {}
    assert record.reusable(made, RUN) is None
    job.run_job(made, [RUN])
    assert record.load(made / FOLDER)["arrays"] == written["arrays"]


def test_records_with_other_arrays_are_not_equal(made, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    job.run_job(other, [RUN])
    assert record.equal(made / FOLDER, other / FOLDER) == []
    changed = record.load(other / FOLDER)
    changed["arrays"] = record.write_arrays(other / FOLDER, {"x": np.zeros(2)})
    record.write(other / FOLDER, changed)
    assert any(line.startswith("arrays:") for line in record.equal(made / FOLDER, other / FOLDER))


def test_without_arrays_an_old_file_goes(tmp_path):
    assert record.write_arrays(tmp_path, {"x": np.zeros(2)})["bytes"] > 0
    assert record.write_arrays(tmp_path, None) is None
    assert not (tmp_path / "arrays.npz").exists()


def test_pickled_objects_are_not_loaded(tmp_path):
    made = record.write_arrays(tmp_path, {"x": np.array([{}], dtype=object)})
    with pytest.raises(Damaged, match="holds no arrays"):
        record.read_arrays(tmp_path, {"arrays": made})
