"""Checkpoints written by several ranks, read by another number of them, and what may go wrong on the way."""

import io
import json
import os
import pickle
import random
import shutil
import time

import pytest
import ranks
import sharded_models
import torch
import torch.distributed as dist
import zoo
from breaking import flipped
from campaign_counts import hold
from poison import CANARY, Payload
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from lowmem import kept_files, partition
from lowmem.errors import Failed, Misuse
from lowmem.files import sha256
from lowmem.optim import CAME, SGD, SM3, AdaLomo, AdamMini, AdamW, Lamb, Lomo
from lowmem.optim import make as make_optimizer
from lowmem.optim.core import state_dict
from lowmem.optim.core.zero1 import Zero1
from lowmem.training import sharded_checkpoint

pytestmark = pytest.mark.slow

BESIDE = {"parameters": "*attention*", "name": "adamw", "lr": 1e-2}
RULES = {
    "adam_mini": lambda m: AdamMini(m, lr=1e-2),
    "came": lambda m: CAME(m, lr=1e-3),
    "sm3": lambda m: SM3(m, lr=1e-2),
    "lamb": lambda m: Lamb(m, lr=1e-2),
    "sgd": lambda m: SGD(m, lr=1e-1, momentum=0.9),
    "adalomo": lambda m: AdaLomo(m, lr=1e-2),
    "lomo": lambda m: Lomo(m, lr=1e-1),
    "lomo beside adamw": lambda m: make_optimizer(m, name="lomo", lr=1e-1, beside=BESIDE),
    "zero1": lambda m: Zero1(AdamMini(m, lr=1e-2), average=True) if dist.get_world_size() > 1 else AdamMini(m, lr=1e-2),
}


def data(step: int) -> torch.Tensor:
    return torch.randint(0, 11, (6, 9), generator=torch.Generator().manual_seed(step))


def make(rule: str, world: int):
    model = sharded_models.build()
    if rule != "zero1":
        model = sharded_models.sharded("fsdp", model, world)
    return model, RULES[rule](model)


def train(rank: int, world: int, model, optimizer, start: int, stop: int) -> list[float]:
    """Losses on the joined batch, whatever the number of ranks."""
    losses = []
    for k in range(start, stop):
        rows = data(k)[rank * 6 // world : (rank + 1) * 6 // world]
        loss = model(rows[:, :-1], rows[:, 1:])
        value = loss.detach().clone()
        zoo.apply(optimizer, loss)
        dist.all_reduce(value)
        losses.append(float(value) / world)
    return losses


def save_and_go_on(rank: int, world: int, folder: str) -> dict:
    found = {}
    for rule in RULES:
        model, optimizer = make(rule, world)
        train(rank, world, model, optimizer, 0, 4)
        sharded_checkpoint.save(f"{folder}/{rule}", 4, model, optimizer, {"tokens": 24})
        found[rule] = train(rank, world, model, optimizer, 4, 8)
    return found


def continue_from(rank: int, world: int, folder: str) -> dict:
    found = {}
    for rule in RULES:
        torch.manual_seed(7)
        model, optimizer = make(rule, world)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        assert sharded_checkpoint.load(f"{folder}/{rule}", model, optimizer) == {"step": 4, "tokens": 24}
        found[rule] = train(rank, world, model, optimizer, 4, 8)
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("saved"))
    return folder, ranks.launch(save_and_go_on, 2, folder)[0]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_checkpoint_of_two_ranks_goes_on_alike_on_any_number(saved, world):
    folder, uninterrupted = saved
    for found in ranks.launch(continue_from, world, folder):
        for rule, losses in found.items():
            print(world, rule, max(abs(a - b) for a, b in zip(losses, uninterrupted[rule])))
            assert losses == pytest.approx(uninterrupted[rule], abs=0 if world == 2 else 2e-5), rule


def test_one_process_without_a_group_reads_it_too(saved):
    folder, uninterrupted = saved
    model = sharded_models.build()
    optimizer = AdamMini(model, lr=1e-2)
    sharded_checkpoint.load(f"{folder}/adam_mini", model, optimizer)
    losses = []
    for k in range(4, 8):
        loss = model(data(k)[:, :-1], data(k)[:, 1:])
        losses.append(float(zoo.apply(optimizer, loss)))
    assert losses == pytest.approx(uninterrupted["adam_mini"], abs=2e-5)


# -- full state dictionaries and torch's own functions ------------------------------------------------------------


def full_states(rank: int, world: int) -> dict:
    model, optimizer = make("adam_mini", world)
    losses = train(rank, world, model, optimizer, 0, 4)
    weights, whole = sharded_models.weights(model), state_dict.full_state_dict(optimizer)
    after = train(rank, world, model, optimizer, 4, 8)

    alone = sharded_models.build()  # the whole state in an optimizer of an unsharded model
    alone.load_state_dict(weights, strict=False)
    plain = AdamMini(alone, lr=1e-2)
    plain.load_state_dict(whole)
    single = []
    for k in range(4, 8):
        loss = alone(data(k)[:, :-1], data(k)[:, 1:])
        single.append(float(zoo.apply(plain, loss)))

    other, again = make("adam_mini", world)  # and back into a sharded one
    shown = sharded_models.build()
    shown.load_state_dict(weights, strict=False)
    with torch.no_grad():
        for p, q in zip(other.parameters(), sharded_models.sharded("fsdp", shown, world).parameters()):
            p.copy_(q)
    again.load_state_dict(whole)
    back = train(rank, world, other, again, 4, 8)

    third, own = make("adam_mini", world)  # torch's functions
    torchs = get_optimizer_state_dict(model, optimizer)
    set_optimizer_state_dict(third, own, torchs)
    kept = sharded_models.worst(
        {f"{n}.{k}": sharded_models.full(v) for n, s in torchs["state"].items() for k, v in s.items()},
        {
            f"{n}.{k}": sharded_models.full(v)
            for n, s in get_optimizer_state_dict(third, own)["state"].items()
            for k, v in s.items()
        },
    )
    return {"losses": losses, "after": after, "single": single, "back": back, "torch": kept}


def test_full_states_fit_one_process_and_any_sharding_and_torchs_functions_work():
    for found in ranks.launch(full_states, 2):
        assert found["single"] == pytest.approx(found["after"], abs=2e-5)
        assert found["back"] == found["after"]
        assert found["torch"] == 0.0


# -- refusals and accidents ------------------------------------------------------------------------------------------


def wrong(rank: int, world: int, folder: str, what: str) -> str:
    model = sharded_models.build("gpt2" if what == "model" else "llama")
    model = sharded_models.sharded("fsdp", model, world)
    build = {
        "model": lambda: AdamMini(model, lr=1e-2),
        "partition": lambda: AdamMini(partition(model, value="tensor"), lr=1e-2),
        "rule": lambda: AdamW(model, lr=1e-2),
    }[what]
    before = sharded_models.weights(model)
    try:
        sharded_checkpoint.load(f"{folder}/adam_mini", model, build())
    except Misuse as error:
        assert sharded_models.worst(before, sharded_models.weights(model)) == 0.0
        return str(error)
    return "nothing was refused"


OTHERS = {
    "model": "another model or partition: tensor of",
    "partition": "another model or partition: partition of .*wv.weight is neuron x 16 .* and tensor x 1",
    "rule": "saved with AdamMini, this run uses AdamW",
}


def test_a_checkpoint_of_another_model_partition_or_rule_is_refused_on_every_rank(saved):
    ranks.refusals(wrong, OTHERS, saved[0])


def die_while_saving(rank: int, world: int, folder: str) -> str:
    model, optimizer = make("adam_mini", world)
    train(rank, world, model, optimizer, 0, 2)
    sharded_checkpoint.save(folder, 2, model, optimizer)
    train(rank, world, model, optimizer, 2, 4)
    if rank == 1:

        def die(*_arguments, **_keywords):
            os._exit(9)

        sharded_checkpoint.dcp.save = die
    try:
        sharded_checkpoint.save(folder, 4, model, optimizer)
    except Failed as error:
        return str(error)
    return "nothing failed"


def resume(rank: int, world: int, folder: str) -> int:
    model, optimizer = make("adam_mini", world)
    return sharded_checkpoint.load(folder, model, optimizer)["step"]


def test_a_rank_that_dies_while_saving_leaves_the_last_checkpoint_loadable(tmp_path):
    started = time.monotonic()
    found = ranks.outcomes(die_while_saving, 2, str(tmp_path))
    assert found[1] == ("dead", 9)
    kind, text = found[0]
    assert kind == "ok" and "was not written" in text and "the last one is untouched" in text, found
    assert time.monotonic() - started < 2 * ranks.COLLECTIVE_TIMEOUT + 40
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["step2"]
    assert ranks.launch(resume, 2, str(tmp_path)) == [2, 2]
    json.loads((tmp_path / "step2" / "layout.json").read_text())


def test_no_checkpoint_is_none(tmp_path):
    model = sharded_models.build()
    assert sharded_checkpoint.load(tmp_path, model, AdamMini(model, lr=1e-2)) is None


# -- damage and poison -----------------------------------------------------------------------------------------------


def whole(folder, step: int) -> tuple:
    """A small model, its optimizer, and their checkpoint in one process."""
    torch.manual_seed(0)
    model = sharded_models.build()
    optimizer = AdamMini(model, lr=1e-2)
    zoo.apply(optimizer, model(data(0)[:, :-1], data(0)[:, 1:]))
    return model, optimizer, sharded_checkpoint.save(folder, step, model, optimizer)


def test_no_bit_of_any_file_of_a_checkpoint_can_flip_without_starting_over(tmp_path):
    _, _, path = whole(tmp_path, 3)
    chance, flips = random.Random(0), 0
    for file in sorted(path.iterdir()):
        content, left = file.read_bytes(), 40
        while left:
            at = chance.randrange(8 * len(content))
            if file.name == "layout.json" and content[at // 8 : at // 8 + 1].isspace():
                continue  # another kind of space says the same
            file.write_bytes(flipped(content, at))
            assert sharded_checkpoint.peek(tmp_path) is None, (file.name, at)
            left, flips = left - 1, flips + 1
        file.write_bytes(content)
    assert sharded_checkpoint.peek(tmp_path) == {"step": 3}
    what = "one flipped bit in a checkpoint of several processes, 40 in each of its files"
    hold("checkpoint bits, sharded", what, {"bits": flips}, "none is read")


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tmp_path, capsys):
    _, _, path = whole(tmp_path, 3)
    shutil.copytree(path, tmp_path / "step12")
    shutil.copytree(path, tmp_path / "step5 copy")
    (tmp_path / "step12/__0_0.distcp").write_bytes(b"")
    assert sharded_checkpoint.peek(tmp_path) == {"step": 3}
    assert "step12 cannot be used" in capsys.readouterr().err


def test_a_poisoned_table_of_contents_runs_nothing_even_with_a_right_hash(tmp_path):
    model, optimizer, path = whole(tmp_path / "run", 3)
    good, canary, places = (path / ".metadata").read_bytes(), tmp_path / CANARY, 0

    def poisoned(change) -> None:
        nonlocal places
        contents = pickle.loads(good)
        (path / ".metadata").write_bytes(pickle.dumps(change(contents) or contents))
        layout = json.loads((path / "layout.json").read_text())
        layout["files"][".metadata"] = sha256(path / ".metadata")
        kept_files.write_json(path / "layout.json", layout)
        with pytest.raises(Failed, match="step3 cannot be used"):
            sharded_checkpoint.load(tmp_path / "run", model, optimizer)
        assert not canary.exists()
        places += 1

    code, name = Payload(tmp_path), next(iter(pickle.loads(good).state_dict_metadata))
    poisoned(lambda contents: code)
    poisoned(lambda contents: [contents, code])
    poisoned(lambda contents: contents.state_dict_metadata.update({name: code}))
    poisoned(lambda contents: contents.state_dict_metadata.update({"other": code}))
    poisoned(lambda contents: setattr(contents.state_dict_metadata[name].properties, "layout", code))
    poisoned(lambda contents: contents.storage_data.update({name: code}))
    poisoned(lambda contents: setattr(contents, "planner_data", code))
    what = "a checkpoint's table of contents with code in it, under a right hash"
    hold("checkpoint with code", what, {"places": places}, "nothing runs; one line")


def test_values_that_are_no_tensors_run_nothing(tmp_path):
    from lowmem.training.checkpoint_metadata import Planner

    poison, canary = io.BytesIO(), tmp_path / CANARY
    torch.save(Payload(tmp_path), poison)
    poison.seek(0)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        Planner().load_bytes(None, poison)
    assert not canary.exists()
