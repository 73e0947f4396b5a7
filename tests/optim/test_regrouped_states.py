"""States whose parameters stood in other groups: every moment goes where its name is, or nothing is loaded."""

import copy
import warnings

import pytest
import torch
import zoo
from torch import nn

from lowmem.optim import SGD, AdamMini, AdamW, FusedBackward, Lion, Lomo, convert

every = pytest.mark.parametrize("case", zoo.ALL, ids=lambda case: case.name)


def alike(seed=0):
    """Four matrices of one shape, so that only names tell them apart."""
    torch.manual_seed(seed)
    return nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in "abcd"})


def loss(model, step):
    x = zoo.batch(step)[:, :3]
    return sum((i + 1) * layer(x).square().mean() for i, layer in enumerate(model.values()))


def grouped(model, *members, **settings):
    """Groups of (name, parameter) pairs; members: names of layers of each group, or (names, settings of the group)."""
    named = {name[0]: (name, p) for name, p in model.named_parameters()}
    parts = [(m, {}) if isinstance(m, str) else m for m in members]
    return [{"params": [named[letter] for letter in names], **settings, **own} for names, own in parts]


def moved(case, before, after):
    """Weights after two steps in one grouping and two more in another, loaded; and after four in the first."""
    ways = []
    for change in (True, False):
        model = alike()
        optimizer = case.build(grouped(model, *before), model=model)
        for step in range(4):
            if step == 2 and change:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = case.build(grouped(model, *after), model=model)
                optimizer.load_state_dict(saved)
            zoo.apply(optimizer, loss(model, step))
        ways.append((zoo.snapshot(model), optimizer))
    return ways


@every
@pytest.mark.parametrize(
    "before, after",
    [(["ab", "cd"], ["abcd"]), (["abcd"], ["da", "cb"]), (["ab", "cd"], ["db", "ca"]), (["a", "bcd"], ["ab", "c", "d"]),
     (["abcd"], ["dcba"]), (["abcd", ""], ["abcd"]), (["abcd"], ["", "abcd"])],
    ids=lambda groups: "+".join(groups),
)  # fmt: skip
def test_a_run_goes_on_bit_by_bit_in_other_groups(case, before, after):
    (found, optimizer), (straight, _) = moved(case, before, after)
    assert zoo.same(found, straight)
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(names) for names in after]


def test_each_group_takes_the_settings_its_parameters_were_saved_with():
    model = alike()
    old = AdamW(grouped(model, ("ab", {"lr": 0.1}), ("cd", {"lr": 0.2, "weight_decay": 0.0})))
    zoo.apply(old, loss(model, 0))
    new = AdamW(grouped(model, "a", "dc", "b"), lr=9.0, weight_decay=0.5)
    new.load_state_dict(old.state_dict())
    assert [(g["lr"], g["weight_decay"]) for g in new.param_groups] == [(0.1, 0.01), (0.2, 0.0), (0.1, 0.01)]
    for p in model.parameters():
        assert torch.equal(new.state[p]["exp_avg"], old.state[p]["exp_avg"])


@pytest.mark.parametrize(
    "key, values, advice",
    [
        ("weight_decay", (0.1, 0.0), r" \(or no_decay=\)"),
        ("lr", (0.1, 0.2), ""),
        ("betas", ((0.9, 0.9), (0.8, 0.9)), ""),
    ],
)
def test_one_group_cannot_take_two_settings_and_says_of_which(key, values, advice):
    model = alike()
    old = AdamW(grouped(model, *[(names, {key: value}) for names, value in zip(("ab", "cd"), values)]))
    zoo.apply(old, loss(model, 0))
    new = AdamMini(model, lr=1e-3)
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(
        ValueError,
        match=rf"^a\.weight was .* {key}=.* and c\.weight with .* in one group; .* for each of them{advice}$",
    ):
        new.load_state_dict(old.state_dict())
    assert new.state_dict() == before


def test_what_only_the_new_groups_tell_apart_stays_and_is_said():
    model = zoo.net()
    old = AdamW(model, lr=0.1, weight_decay=0.3)
    zoo.advance(old, model, 0)
    new = AdamW(model, lr=1.0, weight_decay=0.2, no_decay=["*bias"])
    with pytest.warns(UserWarning, match="AdamW: its groups differ in weight_decay, those of the saved state do not"):
        new.load_state_dict(old.state_dict())
    assert [(group["lr"], group["weight_decay"]) for group in new.param_groups] == [(0.1, 0.2), (0.1, 0.0)]


def test_a_trainers_two_groups_change_over_to_adam_mini():
    """AdamW with decayed and other weights, as trainers build it, to Adam-mini with no_decay in another order of groups."""
    model = zoo.language_model()
    vectors = [(name, p) for name, p in model.named_parameters() if p.ndim < 2]
    matrices = [(name, p) for name, p in model.named_parameters() if p.ndim >= 2]
    old = torch.optim.AdamW([{"params": vectors, "weight_decay": 0.0}, {"params": matrices}], lr=1e-3, weight_decay=0.1)
    for step in range(2):
        zoo.apply(old, zoo.language_loss(model, step))
    new = AdamMini(model, lr=1.0, no_decay=lambda name, p: p.ndim < 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new.load_state_dict(old.state_dict())
    assert [(group["lr"], group["weight_decay"]) for group in new.param_groups] == [(1e-3, 0.1), (1e-3, 0.0)]
    for p in model.parameters():
        assert torch.equal(new.state[p]["exp_avg"], old.state[p]["exp_avg"])
        torch.testing.assert_close(_mean_over_elements(new, p), old.state[p]["exp_avg_sq"].mean())
    zoo.apply(new, zoo.language_loss(model, 2))
    assert all(p.isfinite().all() for p in model.parameters())


def _mean_over_elements(optimizer, p):
    """The mean over elements of a second moment kept by blocks."""
    blocks, v = optimizer.blocks(p), optimizer.state[p]["exp_avg_sq"]
    if blocks.kind == "mixed":  # blocks of several sizes
        sizes = [size for start, stop, size in blocks.segments for _ in range(start, stop, size)]
        return (v * torch.tensor(sizes)).sum() / sum(sizes)
    return v.mean()


@pytest.mark.parametrize("cls", [AdamW, AdamMini, lambda p: FusedBackward(AdamW(p))])
def test_without_names_on_both_sides_other_groups_are_refused_and_both_named(cls):
    model, other = zoo.net(), zoo.net()
    members = list(model.parameters())
    old = torch.optim.AdamW([{"params": members[:2]}, {"params": members[2:]}])
    zoo.advance(old, model, 0)
    new = cls(other)
    before = copy.deepcopy(new.state_dict())
    kind = new.inner.known_as() if hasattr(new, "inner") else new.known_as()
    line = f"the state of an Adam has 2 parameter groups of 2, 2, this {kind} 1 parameter group of 4, and without names"
    with pytest.raises(ValueError, match=line) as caught:
        new.load_state_dict(old.state_dict())
    assert "\n" not in str(caught.value)
    assert new.state_dict() == before


def test_names_that_stand_elsewhere_are_never_taken_in_order():
    """Half of the names are the same, at other places: by order, moments would go to the wrong weights."""
    model, other = alike(), alike()
    old = Lion(grouped(model, "abc"))
    zoo.apply(old, sum((model[n].weight ** 2).sum() for n in "abc"))
    new = Lion(grouped(other, "bda"))
    with pytest.raises(ValueError, match=r"c\.weight is not in this optimizer"):
        new.load_state_dict(old.state_dict())


def test_converting_and_plain_descent_know_groups_too():
    model = alike()
    old = SGD(grouped(model, "ab", "cd"), lr=0.1, momentum=0.9)
    zoo.apply(old, loss(model, 0))
    new = SGD(grouped(model, "dcba"), lr=1.0, momentum=0.9)
    new.load_state_dict(convert(old.state_dict(), new))
    for p in model.parameters():
        assert torch.equal(new.state[p]["momentum_buffer"], old.state[p]["momentum_buffer"])
    lomo = Lomo(grouped(model, "dc", "ba"), lr=1.0)
    lomo.load_state_dict(SGD(grouped(model, "abcd"), lr=0.1).state_dict())
    assert [group["lr"] for group in lomo.param_groups] == [0.1, 0.1]
