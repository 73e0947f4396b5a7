"""Data of the small Hessian models: what the seed decides, what stays of the text, and refusals."""

import numpy as np
import prepared_folders
import pytest
from synthetic import ROOT

from lowmem import toy_data
from lowmem.errors import Failed, Misuse


@pytest.fixture
def folder(tmp_path):
    """A prepared folder with 60 images of 4 x 4 in three classes; the class is the images' brightness."""
    labels = np.arange(60) % 3
    images = (np.ones((60, 4, 4)) * (1 + labels[:, None, None])).astype(np.uint8)
    np.save(tmp_path / "train_images.npy", images)
    np.save(tmp_path / "train_labels.npy", labels.astype(np.uint8))
    return prepared_folders.seal(tmp_path)


def load(folder, seed=0, **measure):
    return toy_data.images({"measure": {"examples": 10, **measure}}, seed, folder)


def test_batches_are_a_function_of_seed_and_step(folder):
    one, again, other = load(folder), load(folder), load(folder, seed=1)
    assert (one.batch(3, 8)[0] == again.batch(3, 8)[0]).all()
    assert not (one.batch(3, 8)[0] == one.batch(4, 8)[0]).all()
    assert not (one.batch(3, 8)[1] == other.batch(3, 8)[1]).all()


def test_fewer_classes_are_numbered_anew_and_keep_their_images(folder):
    data = load(folder, classes=2)
    assert data.shape == {"n_input": 16, "n_output": 2}
    inputs, targets = data.batch(0, 50)
    assert set(targets.tolist()) == {0, 1}
    assert all(len({float(x[0]) for x, t in zip(inputs, targets, strict=True) if t == k}) == 1 for k in (0, 1))


def test_pooling_averages_and_the_brightest_pixel_is_one(folder):
    assert float(load(folder).sample[0].max()) == 1
    pooled = toy_data.pooled(np.arange(16).reshape(1, 4, 4), 2)
    assert pooled.tolist() == [[2.5, 4.5, 10.5, 12.5]]
    assert toy_data.pooled(np.zeros((2, 4, 4, 3)), 2).shape == (2, 12)


@pytest.mark.parametrize(
    ("measure", "message"),
    [({"classes": 4}, "choose 2 to 3"), ({"pool": 3}, "does not divide"), ({"examples": 99}, "lower it")],
)
def test_what_the_data_cannot_give_is_refused(folder, measure, message):
    with pytest.raises(Misuse, match=message):
        load(folder, **measure)


def test_unprepared_data_names_the_command(tmp_path):
    config = {"data": {"dataset": "digits", "source": "package"}, "measure": {}}
    with pytest.raises(Failed, match="lowmem prepare digits --source package"):
        toy_data.load(config, 0, tmp_path)


def test_merged_tokens_are_about_equally_frequent_and_a_large_vocabulary_changes_nothing():
    tokens = np.random.default_rng(0).geometric(0.05, 20_000).clip(max=255).astype(np.uint8)
    counts = np.bincount(toy_data.merge_tokens(tokens, 8)[tokens], minlength=8)
    assert counts.max() < 1.02 * counts.min()
    assert (toy_data.merge_tokens(tokens, 256)[tokens] == tokens).all()


def test_text_gives_targets_that_follow_their_inputs(tmp_path):
    np.arange(256, dtype=np.uint8).tofile(tmp_path / "train.bin")
    prepared_folders.seal(tmp_path, dtype="uint8", train_tokens=256)
    config = {"train": {"seq_len": 5}, "model": {"vocab_size": 256}, "measure": {"examples": 3}}
    inputs, targets = toy_data.text(config, 0, tmp_path).sample
    assert inputs.shape == targets.shape == (3, 5)
    assert (inputs[:, 1:] == targets[:, :-1]).all() and (targets == inputs + 1).all()


def test_every_tier_of_the_hessian_experiments_names_modules_that_exist():
    import torch

    from lowmem import experiments, models  # noqa: F401
    from lowmem.models import gpt2
    from lowmem.tasks.hessian import check, find_modules

    for name in ("hessian_transformer", "hessian_deep"):
        for tier in experiments.tier_names(ROOT):
            for run in experiments.runs(ROOT, name, tier):
                check(run["config"], run["config"]["measure"])
                with torch.device("meta"):
                    model = gpt2.build(**{k: v for k, v in run["config"]["model"].items() if k != "name"})
                assert len(find_modules(model, run["config"]["measure"]["modules"])) == 8
