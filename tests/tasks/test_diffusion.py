"""Diffusion: noise and sampling are what their papers say, distances are right where they are known, runs repeat."""

import json
from pathlib import Path

import numpy as np
import prepared_folders
import pytest
import torch

from lowmem.errors import Misuse
from lowmem.pipeline import experiments
from lowmem.tasks import diffuse
from lowmem.training import job
from lowmem.vision import diffusion, image_batches, reference_networks

DATA = {"dataset": "toy", "source": "package"}
CLASSIFIER = {
    "model": {"name": "resnet", "stem": "small", "width": 4, "depths": [1]},
    "steps": 4,
    "batch_size": 8,
    "lr": 1e-2,
}
LATENT = {"model": {"name": "autoencoder", "widths": [4, 8], "latent": 4}, "steps": 4, "batch_size": 8, "lr": 1e-2}
UNET = {"name": "unet", "width": 4, "multipliers": [1, 2], "attention": [4], "n_block": 1, "groups": 2, "dropout": 0.0}
DIT = {"name": "dit", "patch_size": 2, "n_embd": 8, "n_layer": 1, "n_head": 2}
MEASURE = {"samples": 16, "sample_steps": 3, "classifier": CLASSIFIER}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("diffusion")
    folder = root / "data/prepared/toy"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 30)):
        np.save(folder / f"{part}_images.npy", generator.integers(0, 256, (count, 8, 8), np.uint8))
        np.save(folder / f"{part}_labels.npy", np.arange(count) % 2)
    prepared_folders.seal(folder)
    return root


# -- the process -------------------------------------------------------------------------------------------------------


def test_noise_takes_over_at_the_rate_of_ddpm():
    kept = diffusion.kept_share(1000)
    assert kept[0] == pytest.approx(1 - 1e-4) and kept[-1] == pytest.approx(4.04e-5, rel=0.01)
    assert (kept[1:] < kept[:-1]).all()
    assert diffusion.kept_share(100)[-1] < 1e-4  # fewer steps, the same total


def test_noisy_pictures_keep_their_variance():
    torch.manual_seed(0)
    x, noise = torch.randn(2, 1, 200, 200), torch.randn(2, 1, 200, 200)
    kept = diffusion.kept_share(1000)
    for times in (torch.tensor([0, 999]), torch.tensor([300, 600])):
        assert diffusion.noisy(x, noise, times, kept).std().item() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(diffusion.noisy(x, noise, torch.tensor([0, 0]), kept), x, atol=0.06, rtol=0)


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_a_network_that_knows_the_picture_samples_it(steps):
    torch.manual_seed(0)
    kept, picture = diffusion.kept_share(50), torch.rand(3, 1, 4, 4) * 2 - 1

    def predict(x, times):
        share = kept[times][:, None, None, None]
        return (x - share.sqrt() * picture) / (1 - share).sqrt()

    made = diffusion.sample(predict, torch.randn(3, 1, 4, 4), kept, steps, clip=1.0)
    torch.testing.assert_close(made, picture, atol=1e-4, rtol=0)


def test_samples_of_a_network_without_knowledge_stay_within_bounds():
    made = diffusion.sample(
        lambda x, t: torch.zeros_like(x), torch.randn(3, 1, 4, 4), diffusion.kept_share(50), 10, 1.0
    )
    assert made.abs().max() <= 1 and torch.isfinite(made).all()


# -- distances ---------------------------------------------------------------------------------------------------------


def test_frechet_distance_of_normal_clouds_is_the_closed_form():
    generator = np.random.default_rng(0)
    one = generator.standard_normal((200_000, 2))
    other = generator.standard_normal((200_000, 2)) * [2.0, 3.0] + [1.0, 0.0]
    assert diffusion.frechet(one, other) == pytest.approx(1 + (2 - 1) ** 2 + (3 - 1) ** 2, rel=0.02)
    assert diffusion.frechet(one, one) == pytest.approx(0, abs=1e-9)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert diffusion.frechet(one @ turn, other @ turn) == pytest.approx(diffusion.frechet(one, other))


def test_class_score_is_one_for_the_unsure_and_the_number_of_classes_for_the_sure_and_varied():
    assert diffusion.class_score(np.zeros((10, 5))) == pytest.approx(1)
    assert diffusion.class_score(50 * np.eye(5)) == pytest.approx(5, rel=1e-6)
    assert diffusion.class_score(50 * np.eye(5)[[0, 0, 0]]) == pytest.approx(1)


# -- networks that are kept --------------------------------------------------------------------------------------------


def network(root, measure, inner="latent"):
    """{config, weights} of the network in a configuration's `measure`, trained where it is not there yet."""
    config = settings(**{inner: measure})
    run = {"id": "a/x/seed0", "experiment": "a", "variant": "x", "seed": 0, "tier": "own", "resources": {}}
    return job.with_starts(root, {**run, "config": config}, "")[0]["config"]["measure"][inner]


def test_a_network_is_a_run_of_its_own_made_once_and_leaves_random_numbers_alone(root, monkeypatch):
    data, start = image_batches.load(root, DATA, "cpu", {}, scale="signed"), network(root, LATENT)
    made = json.loads(Path(start["weights"]).with_name("record.json").read_text())
    assert made["status"] == "done" and made["config"]["task"] == "autoencode" and made["weights"]["bytes"] > 0
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = reference_networks.load(data, start)
    assert torch.equal(torch.rand(3), expected) and not any(p.requires_grad for p in first.parameters())
    monkeypatch.setattr(job, "train_run", lambda *_: pytest.fail("trained again"))
    assert network(root, LATENT) == start
    with pytest.raises(pytest.fail.Exception):  # other settings, another network
        network(root, {**LATENT, "steps": 5})


def test_the_autoencoder_learns_to_repeat_pictures(root):
    data = image_batches.load(root, DATA, "cpu", {}, scale="signed")
    x = data.test(0, 30)[0]
    found = [reference_networks.load(data, network(root, {**LATENT, "steps": steps})) for steps in (1, 60)]
    errors = [(one(x) - x).square().mean() for one in found]
    assert errors[1] < 0.8 * errors[0]


def test_a_classifier_that_is_loaded_scores_as_its_record_says(root):
    """With the running means of its normalisation, which are not parameters."""
    data, start = image_batches.load(root, DATA, "cpu", {}, scale="signed"), network(root, CLASSIFIER, "classifier")
    final = json.loads(Path(start["weights"]).with_name("record.json").read_text())["metrics"]["final"]
    images, labels = data.test(0, 30)
    right = (reference_networks.load(data, start)(images).argmax(1) == labels).float().mean().item()
    assert right == pytest.approx(final["val_accuracy"])


# -- task --------------------------------------------------------------------------------------------------------------


def settings(model=UNET, **measure):
    training = {"steps": 3, "batch_size": 8, "eval_every": 3, "eval_batches": 2}
    optimizer = {"name": "adam_mini", "lr": 1e-2}
    return {
        "task": "diffuse",
        "data": DATA,
        "model": model,
        "optimizer": optimizer,
        "train": training,
        "measure": {**MEASURE, **measure},
    }


def run(root, config, name):
    where = {"id": f"{name}/x/seed0", "experiment": name, "variant": "x", "seed": 0, "tier": "own", "resources": {}}
    made = job.train_run(root, {**where, "config": config, "config_hash": experiments.config_hash(config)})
    assert made["status"] == "done", made["reason"]
    return made, np.load(root / "results/own" / where["id"] / "arrays.npz")["samples"]


@pytest.mark.parametrize(
    "config", [settings(), settings(DIT), settings(DIT, latent=LATENT)], ids=["unet", "dit", "latent"]
)
def test_a_run_ends_with_samples_and_their_distance_and_repeats_bit_by_bit(root, config):
    made, samples = run(root, config, "first")
    final = made["metrics"]["final"]
    assert samples.shape == (16, 8, 8, 1) and samples.dtype == np.uint8
    assert final["frechet"] > 0 and final["frechet_floor"] > 0 and 1 <= final["class_score"] <= 2
    assert ("autoencoder_mse" in final) == ("latent" in config["measure"])
    again, others = run(root, config, "second")
    assert again["metrics"] == made["metrics"] and (others == samples).all()


def test_networks_and_latents_are_fp32_inside_a_bf16_run(root):
    data = image_batches.load(root, DATA, "cpu", {}, scale="signed")
    x = data.test(0, 8)[0]
    latents = diffuse.Latents(root, data, network(root, LATENT), 8)
    plain, made = latents.encode(x), latents.decode(latents.encode(x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(latents.encode(x), plain, rtol=0, atol=0)
        torch.testing.assert_close(latents.decode(plain), made, rtol=0, atol=0)


def test_batches_and_validation_are_the_same_for_every_network(root):
    tasks = [diffuse.build(settings(model), 3, root, "cpu") for model in (UNET, DIT)]
    for one, other in zip(tasks[0].batch(7), tasks[1].batch(7), strict=True):
        assert torch.equal(one, other)
    nothing = lambda x, times, labels: torch.zeros_like(x)  # noqa: E731
    losses = [task.evaluate(nothing)["val_loss"] for task in tasks]
    assert losses[0] == losses[1] == pytest.approx(1, abs=0.15)  # the variance of the noise itself


def test_more_test_pictures_than_there_are_and_networks_that_are_not_kept_are_one_line(root):
    config = settings()
    with pytest.raises(Misuse, match=r"30 test images are fewer than the 32 of train\.eval_batches"):
        diffuse.build({**config, "train": {**config["train"], "eval_batches": 4}}, 0, root, "cpu")
    with pytest.raises(Misuse, match="no reference network of kind 'swin'"):
        network(root, {**LATENT, "model": {"name": "swin"}})


def test_labels_are_hidden_from_the_share_of_pictures_that_was_asked_for(root):
    for share, expected in ((0.0, 0), (1.0, 8)):
        labels = diffuse.build(settings(drop_labels=share), 0, root, "cpu").batch(0)[2]
        assert (labels == 2).sum() == expected


def test_without_a_classifier_there_are_samples_and_no_distance(root):
    made, samples = run(root, settings(classifier=None), "plain")
    assert "frechet" not in made["metrics"]["final"] and len(samples) == 16


@pytest.mark.parametrize(
    "measure, message",
    [
        ({"sample_step": 3}, "unknown key 'sample_step' \\(did you mean 'sample_steps'"),
        ({"sample_steps": 2000}, "sample_steps lies between 1 and noise_steps"),
        ({"samples": 4}, "samples is at least 16"),
    ],
)
def test_settings_that_cannot_be_are_one_line(root, measure, message):
    with pytest.raises(Misuse, match=message):
        diffuse.build(settings(**measure), 0, root, "cpu")
