"""States of one optimizer for another one: what becomes of them, and what is refused."""

import copy

import pytest
import torch
import zoo
from adam_mini import Adam_mini as Official

from lowmem.optim import SGD, AdamMini, AdamW, FusedBackward, convert


def trained(cls, **keywords):
    model = zoo.language_model()
    optimizer = cls(model if cls in (AdamMini, AdamW) else model.parameters(), lr=1e-3, **keywords)
    for step in range(3):
        zoo.apply(optimizer, zoo.language_loss(model, step))
    return model, optimizer


@pytest.mark.parametrize("source", [AdamW, torch.optim.AdamW])
def test_an_adams_state_becomes_adam_minis_with_the_first_moment_kept_and_goes_on(source):
    model, adam = trained(source)
    mini = AdamMini(model, lr=1e-3)
    before = copy.deepcopy(mini.state_dict())
    made = convert(adam.state_dict(), to=mini)
    assert mini.state_dict() == before
    mini.load_state_dict(made)
    for p in model.parameters():
        assert torch.equal(mini.state[p]["exp_avg"], adam.state[p]["exp_avg"])
        mean = adam.state[p]["exp_avg_sq"].mean()  # blocks of a tensor are of one size here
        torch.testing.assert_close(mini.state[p]["exp_avg_sq"].mean(), mean, rtol=1e-4, atol=0)
    loss = zoo.language_loss(model, 3).item()
    for step in range(3, 9):
        zoo.apply(mini, zoo.language_loss(model, step))
    assert zoo.language_loss(model, 3).item() < loss


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_storage_changes_and_the_result_is_what_that_optimizer_would_save(dtype):
    model, optimizer = trained(AdamMini, state_dtype="int8")
    other = FusedBackward(AdamMini(model, state_dtype=dtype))
    made = convert(optimizer.state_dict(), to=other)
    assert all(entry["exp_avg"].dtype == getattr(torch, dtype) for entry in made["state"].values())
    other.load_state_dict(made)
    assert zoo.same(zoo.state_tensors(other), {f"{i}.{k}": v for i, s in made["state"].items() for k, v in s.items()})


def official():
    model = zoo.language_model()
    names = {"tokens.": "wte.", "positions.": "wpe.", "head.": "lm_head."}
    named = []
    for name, p in model.named_parameters():
        for ours, theirs in names.items():
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        named.append((name, p))
    settings = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizer = Official(named, **settings, dim=16, n_heads=2, verbose=False)
    for step in range(3):
        zoo.apply(optimizer, zoo.language_loss(model, step))
    undecayed = lambda name, p: "norm" in name or "bias" in name  # noqa: E731
    return model, optimizer, dict(**settings, no_decay=undecayed)


def test_the_official_adam_minis_checkpoint_goes_on_as_it_would_have():
    model, optimizer, settings = official()
    other = copy.deepcopy(model)
    ours = AdamMini(other, **settings, overrides={"positions.weight": "tensor"})
    ours.load_state_dict(convert(optimizer.state_dict(), to=ours))
    for step in range(3, 9):
        zoo.apply(optimizer, zoo.language_loss(model, step))
        zoo.apply(ours, zoo.language_loss(other, step))
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_what_is_not_defined_is_refused_with_the_reason():
    model, optimizer, _ = official()
    with pytest.raises(ValueError, match=r"positions\.weight: the official state has 1 blocks, this optimizer 8"):
        convert(optimizer.state_dict(), to=AdamMini(model))
    with pytest.raises(ValueError, match="official Adam_mini's, of which AdamW cannot take block means"):
        convert(optimizer.state_dict(), to=AdamW(model))
    model, mini = trained(AdamMini)
    with pytest.raises(ValueError, match="AdamMini's, whose second moments are means over blocks; AdamW needs"):
        convert(mini.state_dict(), to=AdamW(model))
    with pytest.raises(ValueError, match="SGD with momentum"):
        convert(trained(SGD, momentum=0.9)[1].state_dict(), to=AdamMini(zoo.language_model()))
