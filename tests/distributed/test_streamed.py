"""Checkpoints straight into shards: three ranks read their rows and no more, and trouble of one is told by all."""

import contextlib
import re
from pathlib import Path

import checkpoints
import pytest
import ranks
import torch
from safetensors.torch import load_file, save_file

from lowmem import distributed, optim
from lowmem.errors import Failed
from lowmem.optim.core.sharding import is_dtensor, local
from lowmem.training import fsdp
from lowmem.weights import lazy_weights, pretrained

pytestmark = pytest.mark.slow

LORA = {"kind": "lora", "rank": 2, "dropout": 0.0}
CASES = {  # what is stored, and how it is used
    "plain": ({}, {}),
    "tied": ({"tied": True}, {}),
    "stored in 16 bits, used in 32": ({"dtype": torch.bfloat16}, {}),
    "used in bfloat16": ({"dtype": torch.float16}, {"dtype": "bfloat16"}),
    "fewer rows than ranks": ({"n_embd": 2, "n_head": 1, "n_hidden": 2}, {}),
    "lora": ({}, {"adapter": LORA}),
    "lora beside trained weights": ({}, {"adapter": {**LORA, "freeze": False}}),
    "prefix": ({}, {"adapter": {"kind": "prefix", "length": 2}}),
}
TOKENS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))


@contextlib.contextmanager
def counted():
    """Collects the bytes of each slice that is asked of a file."""
    asked, original = [], lazy_weights.rows

    def rows(*arguments):
        values = original(*arguments)
        asked.append(values.nbytes)
        return values

    lazy_weights.rows = rows
    try:
        yield asked
    finally:
        lazy_weights.rows = original


def built(folder: Path, settings: dict):
    torch.manual_seed(0)
    return pretrained.language_model(folder, {"name": "llama", "pretrained": str(folder), **settings})[0]


def trained(model, steps=2) -> dict[str, torch.Tensor]:
    """Logits before and whole weights after two steps of Adam-mini."""
    optimizer = optim.make(model, name="adam_mini", lr=0.01)
    found = {"logits": model(TOKENS).detach()}
    for _ in range(steps):
        model(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    whole = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in model.named_parameters()}
    return found | {name: weight.detach() for name, weight in whole.items()}


def compared(rank: int, world: int, root: str) -> dict:
    """For each case the worst difference to one process, and what this rank asked of the files."""
    found = {}
    for case, (_, settings) in CASES.items():
        folder = Path(root) / case
        with counted() as asked:
            model = fsdp.shard_model(built(folder, settings))
        own = sum(
            local(p).numel() for name, p in model.named_parameters() if "lora_" not in name and "prefix" not in name
        )
        with distributed.rank0_only({"config": {}}):
            alone = built(folder, settings)
        tied = model.head.weight is model.tokens.weight
        with torch.no_grad(), fsdp.gathered(model):
            model(TOKENS)
            kept = not any(is_dtensor(p) for p in model.parameters())
        kept &= all(is_dtensor(p) for p in model.parameters())
        theirs, ours = trained(alone), trained(model)
        worst = max((ours[name] - value).abs().max().item() for name, value in theirs.items())
        found[case] = {"worst": worst, "asked": asked, "own": own, "tied": tied, "names": ours.keys() == theirs.keys()}
        found[case]["kept"] = kept
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("streamed")
    for case, (stored, _) in CASES.items():
        listed(root / case, **stored)
    return root


def listed(folder: Path, **stored) -> Path:
    """A checkpoint, in a folder that is also a root: with the list of datasets that language_model() looks into."""
    checkpoints.write(folder, **stored)
    (folder / "data").mkdir()
    (folder / "data/sources.yaml").write_text("x: {sources: []}\n")
    return folder


def sizes(folder: Path) -> list[int]:
    """Elements of each weight that a checkpoint holds."""
    files = [load_file(file) for file in folder.glob("*.safetensors")]
    return [weight.numel() for file in files for name, weight in file.items() if "inv_freq" not in name]


def test_three_ranks_read_their_rows_alone_and_train_as_one_process(root):
    everyone = ranks.launch(compared, 3, str(root))
    for case, (stored, settings) in CASES.items():
        of_case, elements = [found[case] for found in everyone], sizes(root / case)
        width = torch.empty(0, dtype=stored.get("dtype", torch.float32)).element_size()
        assert sum(found["own"] for found in of_case) == sum(elements), case
        for found in of_case:
            assert found["kept"], f"{case}: whole between tokens of a text, and cut again afterwards"
            assert found["names"] and found["tied"] == stored.get("tied", False), case
            assert found["worst"] <= (0.05 if settings.get("dtype") == "bfloat16" else 5e-6), (case, found["worst"])
            assert sum(found["asked"]) == width * found["own"] < 0.5 * width * sum(elements), case
            assert max(found["asked"]) < 0.4 * width * max(elements), case


# -- trouble -----------------------------------------------------------------------------------------------------------


def rewritten(folder: Path, name: str, change) -> None:
    """Replace one tensor in its file; None removes it."""
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        if name in weights:
            changed = change(weights.pop(name))
            save_file({**weights, **({} if changed is None else {name: changed})}, file)


def cut_short(folder: Path) -> None:
    file = folder / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


TROUBLE = {
    "cut short": (cut_short, "model-00003-of-00003.safetensors is a damaged file .*; get it again"),
    "a file is gone": (lambda f: (f / "model-00002-of-00003.safetensors").unlink(), "model-00002-of-.* is missing"),
    "a tensor is gone": (lambda f: rewritten(f, "model.norm.weight", lambda w: None), "cannot read model.norm.weight"),
    "another shape": (
        lambda f: rewritten(f, "model.norm.weight", lambda w: w[:5].clone()),
        r"model.norm.weight is F32 \[5\], the model needs numbers \[20\]",
    ),
    "whole numbers": (
        lambda f: rewritten(f, "lm_head.weight", lambda w: w.to(torch.int8)),
        r"lm_head.weight is I8 \[50, 20\], the model needs numbers",
    ),
    "not in the index": (
        lambda f: (f / lazy_weights.INDEX).write_text('{"weight_map": {}}'),
        "does not hold the weights that its config.json says: no lm_head.weight",
    ),
    "an index that leads away": (
        lambda f: (f / lazy_weights.INDEX).write_text('{"weight_map": {"lm_head.weight": "../x.safetensors"}}'),
        "its weight_map names no files of this folder",
    ),
}


def troubled(rank: int, world: int, root: str) -> dict:
    """What each rank says of a checkpoint that is damaged for all, and of one that is damaged for the last rank alone."""
    found = {}
    for case in TROUBLE:
        for last_alone in (False, True):
            folder = Path(root) / ("sound" if last_alone and rank < world - 1 else case)
            try:
                fsdp.shard_model(built(folder, {}))
            except Failed as error:
                found[case, last_alone] = str(error)
    return found


def test_a_damaged_checkpoint_is_one_line_on_every_rank(tmp_path):
    listed(tmp_path / "sound")
    for case, (damage, _) in TROUBLE.items():
        damage(listed(tmp_path / case))
    everyone = ranks.launch(troubled, 3, str(tmp_path))
    for case, (_, message) in TROUBLE.items():
        for last_alone in (False, True):
            [said] = {found.get((case, last_alone)) for found in everyone}
            assert "\n" not in said and re.search(message, said), (case, last_alone, said)
