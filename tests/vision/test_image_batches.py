"""Pictures: files become arrays, damaged ones are named, and batches are the same for every optimizer."""

import base64
import gzip
import io
import json

import numpy as np
import prepared_folders
import pytest
import torch
from archive_bytes import tar_bytes
from PIL import Image
from synthetic import ROOT
from user_files import use

from lowmem.data import image_files, prepare
from lowmem.data.sources import hub
from lowmem.errors import Failed, Misuse
from lowmem.tasks import classify
from lowmem.vision import image_batches

GENERATOR = np.random.default_rng(0)


def png(height: int, width: int, value: int | None = None) -> bytes:
    shape = (height, width, 3)
    array = GENERATOR.integers(0, 256, shape, np.uint8) if value is None else np.full(shape, value, np.uint8)
    out = io.BytesIO()
    Image.fromarray(array).save(out, "png")
    return out.getvalue()


def folder_of(tmp_path, dataset, files):
    """A root whose dataset came from a folder of the user with these files, subfolders too."""
    for name in files:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
    return use(tmp_path, dataset, files)


# -- files -------------------------------------------------------------------------------------------------------------


def test_pictures_are_scaled_by_their_shorter_side_and_cut_in_the_middle():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    fitted = np.asarray(image_files.fitted(Image.fromarray(wide), 5))
    assert fitted.shape == (5, 5, 3) and fitted[:, 1:4].min() > 150
    assert np.asarray(image_files.fitted(Image.fromarray(wide), 10)).min() == 200


def test_imagenet_folders_become_files_of_equal_pictures_with_their_classes(tmp_path):
    files = {
        f"{split}/n{c}/{k}.png": png(20 + k, 30, 40 * c) for split in ("train", "val") for c in (1, 2) for k in (0, 1)
    }
    root = folder_of(tmp_path, "imagenet", files)
    found = prepare.load_arrays(prepare.prepare(root, "imagenet", "folder"))
    assert found["train_images"].shape == (4, 256, 256, 3) and found["test_images"].dtype == np.uint8
    assert found["train_labels"].tolist() == found["test_labels"].tolist() == [0, 0, 1, 1]
    assert found["train_images"][:, 0, 0, 0].tolist() == [40, 40, 80, 80]


@pytest.mark.parametrize("damage", [lambda png: png[: len(png) // 2], lambda png: b"no picture", lambda png: b""])
def test_a_damaged_picture_is_named_in_one_line(tmp_path, damage):
    files = {f"{split}/a/{k}.png": png(8, 8) for split in ("train", "val") for k in range(3)}
    files["val/a/1.png"] = damage(files["val/a/1.png"])
    root = folder_of(tmp_path, "imagenet", files)
    with pytest.raises(Failed, match=r"val/a/1\.png is not a readable image \(.+\); replace or remove it") as error:
        prepare.prepare(root, "imagenet", "folder")
    assert "\n" not in str(error.value)
    assert not (root / "data/prepared/imagenet@folder").exists()


def test_a_folder_without_pictures_is_one_line(tmp_path):
    root = folder_of(tmp_path, "imagenet", {"train/a/readme.txt": b"", "val/a/1.png": png(4, 4)})
    with pytest.raises(Failed, match=r"no images in .*train; it needs one folder of images per class"):
        prepare.prepare(root, "imagenet", "folder")


def test_faces_have_no_classes_and_a_tenth_of_few_is_held_out(tmp_path):
    files = {f"train/faces/{k:02d}.png": png(70, 64) for k in range(20)}
    found = prepare.load_arrays(prepare.prepare(folder_of(tmp_path, "celeba", files), "celeba", "folder"))
    assert found["train_images"].shape == (18, 64, 64, 3) and found["test_images"].shape == (2, 64, 64, 3)
    assert not found["train_labels"].any()


def cifar(count: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    pixels, labels = (
        GENERATOR.integers(0, 256, (count, 32, 32, 3), np.uint8),
        GENERATOR.integers(0, 10, count).astype(np.uint8),
    )
    rows = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(pixels, labels, strict=True)]
    return b"".join(rows), pixels, labels


def test_cifar10_is_the_same_from_the_authors_archive_and_from_the_hub(tmp_path):
    parts = [cifar(3) for _ in range(6)]
    names = [*[f"data_batch_{k}.bin" for k in range(1, 6)], "test_batch.bin"]
    packed = {f"cifar-10-batches-bin/{name}": part[0] for name, part in zip(names, parts, strict=True)}
    root = use(tmp_path / "one", "cifar10", {"cifar-10-binary.tar.gz": tar_bytes(packed)})
    found = prepare.load_arrays(prepare.prepare(root, "cifar10", "folder"))
    assert (found["train_images"] == np.concatenate([part[1] for part in parts[:5]])).all()
    assert (found["test_labels"] == parts[5][2]).all()
    shards = {}
    for split, group in (("train", parts[:5]), ("test", parts[5:])):
        rows = [(image, label) for _, pixels, labels in group for image, label in zip(pixels, labels, strict=True)]
        lines = [{"img": hub.plain(Image.fromarray(image)), "label": int(label)} for image, label in rows]
        shards[f"{split}-00000.jsonl.gz"] = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
    root = use(tmp_path / "two", "cifar10", shards)
    again = prepare.load_arrays(prepare.prepare(root, "cifar10", "folder"))
    assert all((found[name] == again[name]).all() for name in image_batches.ARRAYS)


def test_the_hub_keeps_pictures_at_the_size_that_sources_ask_for():
    kept = hub.kept({"image": Image.fromarray(np.full((40, 60), 7, np.uint8)), "label": 3}, ["image", "label"], 16)
    assert kept["image"]["shape"] == [16, 16, 3] and kept["label"] == 3
    assert set(base64.b64decode(kept["image"]["pixels"])) == {7}


def test_a_stack_of_rows_is_a_file_that_numpy_reads_and_a_row_of_another_shape_is_refused():
    rows = [np.full((2, 3), k, np.uint8) for k in range(5)]
    read = np.load(io.BytesIO(image_files.Stacked(iter(rows), 5, (2, 3)).read()))
    assert (read == np.array(rows)).all()
    with pytest.raises(Failed, match=r"an image has shape \[3, 2\], not \[2, 3\]"):
        image_files.Stacked(iter([rows[0].T]), 1, (2, 3)).read()


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten classes of 12 x 12 grey pictures; a picture's brightest row is its class."""
    root = tmp_path_factory.mktemp("pictures")
    folder = root / "data/prepared/toy"
    folder.mkdir(parents=True)
    for part, count in (("train", 50), ("test", 20)):
        labels = np.arange(count) % 10
        shown = GENERATOR.integers(0, 60, (count, 12, 12), np.uint8)
        shown[np.arange(count), labels] = 255
        np.save(folder / f"{part}_images.npy", shown)
        np.save(folder / f"{part}_labels.npy", labels)
    prepared_folders.seal(folder)
    return root


def load(root, **settings):
    return image_batches.load(root, {"dataset": "toy", "source": "package"}, "cpu", settings)


def test_an_epoch_shows_every_picture_once_and_the_next_one_in_another_order(root):
    data = load(root)
    batches = [data.train(0, k, 10)[0].flatten(1) for k in range(10)]
    first, second = torch.cat(batches[:5]), torch.cat(batches[5:])
    assert len(first.unique(dim=0)) == 50
    assert torch.equal(first.unique(dim=0), second.unique(dim=0))
    assert not torch.equal(first, second)


def test_batches_are_a_function_of_seed_and_number_and_do_not_depend_on_their_size(root):
    data = load(root, augment="none")
    assert torch.equal(data.train(3, 7, 8)[0], load(root, augment="none").train(3, 7, 8)[0])
    assert not torch.equal(data.train(3, 7, 8)[0], data.train(4, 7, 8)[0])
    halves = torch.cat([data.train(0, k, 15)[0] for k in (6, 7)])  # one of them spans two epochs
    torch.testing.assert_close(halves, data.train(0, 3, 30)[0])


def test_pictures_are_standard_normal_or_signed(root):
    data = load(root)
    shown = torch.cat([data.train(0, k, 10)[0] for k in range(5)])
    assert abs(shown.mean()) < 1e-3 and abs(shown.std() - 1) < 1e-2
    signed = image_batches.load(root, {"dataset": "toy", "source": "package"}, "cpu", {"pad_to": 16}, scale="signed")
    shown = signed.test(0, 20)[0]
    assert shown.shape == (20, 1, 16, 16) and shown.max() == 1 and shown[:, :, :2].max() == -1 == shown.min()


@pytest.mark.parametrize("augment", image_batches.AUGMENTATIONS)
@pytest.mark.parametrize("crop", [None, 8])
def test_augmented_pictures_keep_their_size_and_test_pictures_stay(root, augment, crop):
    data = load(root, augment=augment, crop=crop)
    shown, labels = data.train(0, 0, 16)
    assert shown.shape == (16, 1, crop or 12, crop or 12) and labels.shape == (16,)
    torch.testing.assert_close(shown, load(root, augment=augment, crop=crop).train(0, 0, 16)[0])
    torch.testing.assert_close(data.test(0, 4)[0], load(root, crop=crop).test(0, 4)[0])


def test_a_random_window_is_a_part_of_the_picture():
    picture = torch.arange(100.0).view(1, 1, 10, 10).repeat(40, 1, 1, 1)
    shown = image_batches.augmented(picture, "crop", 7, np.random.default_rng(0))
    corners = set()
    for one in shown[:, 0]:
        one = one if one[0, 0] < one[0, 1] else one.flip(-1)
        row, column = divmod(int(one[0, 0]), 10)
        assert torch.equal(one, picture[0, 0, row : row + 7, column : column + 7])
        corners.add((row, column))
    assert len(corners) > 8


def test_a_zoom_shows_a_quarter_to_all_of_the_area():
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(60, 1, 64, 64).contiguous()
    shown = image_batches.augmented(ramp, "zoom", 32, np.random.default_rng(0))
    widths = (shown[:, 0, 0, -1] - shown[:, 0, 0, 0]).abs() / (64 * 31 / 32)
    assert 0.45 < widths.min() < 0.65 and 0.9 < widths.max() < 1.01


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"augment": "mixup"}, "unknown 'mixup'"),
        ({"pool": 5}, "pool 5"),
        ({"crop": 20}, "crop 20"),
        ({"pad_to": 13}, "pad_to 13"),
        ({"pad_to": 8}, "pad_to 8"),
    ],
)
def test_settings_that_do_not_fit_the_pictures_are_refused(root, settings, message):
    with pytest.raises(Misuse, match=message):
        load(root, **settings)


def test_arrays_that_are_no_pictures_are_refused(tmp_path):
    good = {name: np.zeros((3, 4, 4) if "images" in name else 3, np.uint8) for name in image_batches.ARRAYS}
    image_batches.check(good, tmp_path)
    with pytest.raises(Misuse, match="holds no images"):
        image_batches.check({"tokens": np.zeros(3)}, tmp_path)
    with pytest.raises(Failed, match="3 images and 2 labels in test"):
        image_batches.check(good | {"test_labels": np.zeros(2, np.uint8)}, tmp_path)
    with pytest.raises(Failed, match="not square uint8"):
        image_batches.check(good | {"train_images": np.zeros((3, 4, 5), np.uint8)}, tmp_path)


# -- task --------------------------------------------------------------------------------------------------------------


def test_the_task_learns_and_counts_what_is_right_on_the_whole_test_part(root):
    config = {"data": {"dataset": "toy", "source": "package"}, "train": {"batch_size": 8}}
    config["model"] = {"name": "resnet", "stem": "small", "width": 4, "depths": [1, 1]}
    torch.manual_seed(0)
    task = classify.build(config, 0, root, "cpu")
    assert task.model.config.n_output == 10 and task.model.config.n_channel == 1 and task.units == 8
    optimizer = torch.optim.Adam(task.model.parameters(), lr=0.02)
    before = task.evaluate(task.model.eval())
    for step in range(40):
        task.model.train()
        optimizer.zero_grad()
        task.loss(task.model, task.batch(step)).backward()
        optimizer.step()
    after = task.evaluate(task.model.eval())
    assert after["val_loss"] < before["val_loss"] and after["val_accuracy"] > 0.3
    assert round(after["val_accuracy"] * 20) == pytest.approx(after["val_accuracy"] * 20)  # of 20 test pictures
    with pytest.raises(Misuse, match="no key 'croop' \\(did you mean 'crop'"):
        classify.build({**config, "measure": {"croop": 3}}, 0, root, "cpu")


def test_the_real_sources_keep_large_pictures_small():
    import yaml

    listed = yaml.safe_load((ROOT / "data/sources.yaml").read_text())
    assert listed["imagenet"]["sources"][0]["image_size"] == 256 and listed["celeba"]["sources"][0]["image_size"] == 64
