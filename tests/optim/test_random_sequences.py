"""Random lives of an optimizer beside another on a copy of the model: equal weights, or a refusal, never a silent difference.

The other is torch's where torch has the rule, else the literal twin of tests/support/twins.py as an optimizer of torch's kind.

What a training script may do between steps: freeze, thaw, add a layer, replace a weight, cast, save and load (also into other
groups), copy, pickle, change the rate, leave a layer out. Both get the same. Life n is the same on every machine.
LOWMEM_COUNT=1 runs 2,000 of each optimizer and notes how many were refused (data/campaigns/counts.json).
"""

import copy
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
import twins
from campaign_counts import WHOLE, hold
from torch import nn

from lowmem.optim import CAME, SGD, SM3, Adafactor, AdaLomo, AdamMini, AdamW, FusedBackward, Lamb, Lion, Lomo

WIDTH, FAST, SOME, MANY = 3, 15, 150, 2000
ADAM = dict(lr=0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)  # a large eps: no noise from gradients near 0
MOMENTUM = dict(lr=0.05, momentum=0.9, weight_decay=0.1)
CONFIDENT = dict(lr=0.02, betas=(0.8, 0.9, 0.95), eps=(1e-4, 1e-3), weight_decay=0.1)
COVERED = dict(lr=0.02, momentum=0.8, beta=0.9, eps=1e-4, weight_decay=0.1)
SIGNS = dict(lr=0.005, betas=(0.8, 0.9), weight_decay=0.1)
VISION = dict(lr=0.02, beta1=0.8, eps=(1e-4, 1e-3), weight_decay=0.1)
RELATIVE = dict(lr=0.02, eps=(1e-4, 1e-3), weight_decay=0.1)


def mini(groups, **keywords):
    """Adam-mini whose blocks are single coordinates is Adam."""
    return AdamMini(groups, **ADAM, overrides={"*": "coordinate"}, **keywords)


class Literal(torch.optim.Optimizer):
    """A twin for each weight, as an optimizer of torch's kind. kind: the twin's class."""

    def __init__(self, params, kind, lr, **settings):
        super().__init__(params, dict(lr=lr, kind=kind, settings=settings))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["twin"] = group["kind"](group["lr"], **group["settings"])
                twin = self.state[p]["twin"]
                twin.lr = group["lr"]
                p.copy_(torch.from_numpy(np.asarray(twin.step(p.double().numpy(), p.grad.double().numpy()))))


PAIRS = {
    "adamw": (lambda g, **k: AdamW(g, **ADAM, **k), lambda g: torch.optim.AdamW(g, **ADAM)),
    "sgd": (lambda g, **k: SGD(g, **MOMENTUM, **k), lambda g: torch.optim.SGD(g, **MOMENTUM)),
    "adam_mini": (mini, lambda g: torch.optim.AdamW(g, **ADAM)),
    "adamw inside backward": (
        lambda g, **k: FusedBackward(AdamW(g, **ADAM, **k)),
        lambda g: torch.optim.AdamW(g, **ADAM),
    ),
    "lomo": (lambda g, **k: Lomo(g, lr=0.05, **k), lambda g: torch.optim.SGD(g, lr=0.05)),
    "adafactor": (
        lambda g, **k: Adafactor(g, lr=0.05, eps=(1e-15, 1e-3), relative_step="capped", **k),
        lambda g: torch.optim.Adafactor(g, lr=0.05, eps=(1e-15, 1e-3)),
    ),
    "adafactor, zhai": (
        lambda g, **k: Adafactor(g, variant="zhai", **VISION, **k),
        lambda g: Literal(g, twins.Adafactor, beta2_cap=0.999, scale=False, **VISION),
    ),
    "adalomo": (lambda g, **k: AdaLomo(g, **RELATIVE, **k), lambda g: Literal(g, twins.Adafactor, **RELATIVE)),
    "came": (lambda g, **k: CAME(g, **CONFIDENT, **k), lambda g: Literal(g, twins.CAME, clip=1.0, **CONFIDENT)),
    "lamb": (lambda g, **k: Lamb(g, **ADAM, **k), lambda g: Literal(g, twins.Lamb, **ADAM)),
    "lion": (lambda g, **k: Lion(g, **SIGNS, **k), lambda g: Literal(g, twins.Lion, **SIGNS)),
    "sm3": (lambda g, **k: SM3(g, **COVERED, **k), lambda g: Literal(g, twins.SM3, **COVERED)),
}
TORCHS = ("adamw", "sgd", "adam_mini", "adamw inside backward", "lomo", "adafactor")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)])
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.left_out = None

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            if number != self.left_out:
                x = x + layer(x).tanh() * self.scale
        return (x - 0.3).square().mean()


class Life:
    """One model with one optimizer, and the operations that both lives go through."""

    def __init__(self, build, ours: bool):
        torch.manual_seed(0)
        self.build, self.ours, self.model = build, ours, Net()
        self.start()

    def start(self):
        self.optimizer = self.build(self.model if self.ours else list(self.model.parameters()))

    def step(self, seed):
        used = [layer for number, layer in enumerate(self.model.layers) if number != self.model.left_out]
        if not any(p.requires_grad for part in used for p in part.parameters()) and not self.model.scale.requires_grad:
            return
        p = self.model.scale
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(p.dtype)
        self.optimizer.zero_grad()
        loss = self.model(x)
        self.optimizer.backward(loss) if hasattr(self.optimizer, "backward") else loss.backward()
        self.optimizer.step()

    def freeze(self, seed):
        self.part(seed).requires_grad_(False)

    def thaw(self, seed):
        self.part(seed).requires_grad_(True)

    def add(self, seed):
        torch.manual_seed(seed)
        self.model.layers.append(nn.Linear(WIDTH, WIDTH, bias=False).to(self.model.scale.dtype))
        self.optimizer.add_param_group({"params": list(self.model.layers[-1].parameters())})

    def replace(self, seed):
        layer = self.model.layers[seed % len(self.model.layers)]
        layer.weight = nn.Parameter(layer.weight.detach().clone() * 0.9)

    def cast(self, seed):
        self.model.to(torch.float64 if seed % 2 else torch.float32)
        self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))  # moments follow, as torch's do

    def load(self, _):
        groups = [{"params": list(group["params"])} for group in self.optimizer.param_groups]
        saved = copy.deepcopy(self.optimizer.state_dict())
        self.optimizer = self.build(groups, model=self.model) if self.ours else self.build(groups)
        self.optimizer.load_state_dict(saved)

    def regroup(self, seed):
        """Save, and load into other groups: one of all weights where their rates agree, or one of each, in either order."""
        if not held(self):
            return  # a weight was replaced, which the next step refuses
        saved, old = copy.deepcopy(self.optimizer.state_dict()), self.optimizer
        rates = {p: group["lr"] for group in old.param_groups for p in group["params"]}
        members = [(name, p) for name, p in self.model.named_parameters() if p in rates][:: (1, -1)[seed % 2]]
        together = seed < 5 and len({rates[p] for _, p in members}) == 1
        parts = [members] if together else [[pair] for pair in members]
        if self.ours:
            self.optimizer = self.build([{"params": part} for part in parts], model=self.model)
            self.optimizer.load_state_dict(saved)
            return
        groups = [{"params": [p for _, p in part], "lr": rates[part[0][1]]} for part in parts]
        self.optimizer = self.build(groups)
        self.optimizer.state.update(
            {p: entry for p, entry in old.state.items() if p in rates}
        )  # torch's cannot load this

    def leave_out(self, seed):
        self.model.left_out = seed % len(self.model.layers)

    def copy(self, _):
        self.model, self.optimizer = copy.deepcopy((self.model, self.optimizer))

    def pickle(self, _):
        self.model, self.optimizer = pickle.loads(pickle.dumps((self.model, self.optimizer)))

    def schedule(self, seed):
        for group in self.optimizer.param_groups:
            group["lr"] *= (0.5, 2.0)[seed % 2]

    def part(self, seed):
        parts = [*self.model.layers, self.model.scale]
        return parts[seed % len(parts)]


OPERATIONS = (
    "step", "freeze", "thaw", "add", "replace", "cast", "load", "regroup", "leave_out", "copy", "pickle", "schedule",
)  # fmt: skip


def life(number: int) -> list[tuple[str, int]]:
    """Operations with a seed each."""
    chance = random.Random(number)
    return [(chance.choice((*OPERATIONS, "step", "step")), chance.randrange(10)) for _ in range(chance.randint(2, 12))]


def held(life: Life) -> bool:
    """Whether every weight of the model is the optimizer's: torch goes on with one that has left the model."""
    owned = {id(p) for group in life.optimizer.param_groups for p in group["params"]}
    return all(id(p) in owned for p in life.model.parameters())


def live(pair, operations) -> int:
    """Both lives, compared after every step; the number of refusals."""
    ours, theirs = Life(pair[0], True), Life(pair[1], False)
    refused = 0
    for name, seed in [*operations, ("step", 1), ("step", 2)]:
        try:
            getattr(ours, name)(seed)
        except RuntimeError as error:
            assert "was replaced by another tensor" in str(error)
            assert not held(theirs), f"refused what torch would train: {error}"
            refused += 1
            with torch.no_grad():  # nothing was changed; both begin anew
                for p, q in zip(ours.model.parameters(), theirs.model.parameters()):
                    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
            ours.model.zero_grad()
            theirs.model.zero_grad()
            ours.start()
            theirs.start()
            continue
        getattr(theirs, name)(seed)
        for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            assert p.dtype == q.dtype
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    return refused


def run(pair, lives: int) -> int:
    """So many lives; the number of refusals in them."""
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(lives):
            try:
                refused += live(pair, life(number))
            except Exception as error:
                error.add_note(f"life {number}: {life(number)}")
                raise
    return refused


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_random_lives_equal_the_others_or_are_refused(pair):
    run(pair, FAST)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", PAIRS)
def test_many_random_lives_equal_the_others_or_are_refused(name):
    refused = run(PAIRS[name], MANY if WHOLE else SOME)
    other = "PyTorch's" if name in TORCHS else "a literal reference"
    what = f"random sequences of what a user does to an optimizer, beside {other}: {name}"
    hold(
        f"random lives: {name}", what, {"lives": MANY, "refusals in them": refused}, "equal or refused", part=not WHOLE
    )


def test_a_replaced_weight_is_refused_and_counted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert live(PAIRS["adamw"], [("step", 0), ("replace", 0), ("step", 1)]) == 1
