"""Ours against torch.optim on the same models and batches."""

import itertools

import pytest
import torch
import zoo

from lowmem.optim import SGD, Adafactor, AdamW

STEPS = 30


def both(ours, theirs, dtype=torch.float32):
    """Train two equal models; the pair of them."""
    a, b = zoo.net(dtype), zoo.net(dtype)
    zoo.train(ours(a), a, STEPS)
    zoo.train(theirs(b.parameters()), b, STEPS)
    return a, b


def close(a, b, tolerance):
    for p, q in zip(a.parameters(), b.parameters()):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    "betas, eps, decay", [((0.9, 0.999), 1e-8, 0.0), ((0.9, 0.95), 1e-8, 0.1), ((0.0, 0.5), 1e-3, 0.5)]
)
def test_adamw(dtype, tolerance, betas, eps, decay):
    settings = dict(lr=1e-2, betas=betas, eps=eps, weight_decay=decay)
    close(*both(lambda m: AdamW(m, **settings), lambda p: torch.optim.AdamW(p, **settings), dtype), tolerance)


SWITCHES = [
    dict(momentum=m, dampening=d, weight_decay=w, nesterov=n)
    for m, d, w, n in itertools.product((0.0, 0.9), (0.0, 0.5), (0.0, 0.1), (False, True))
    if not (n and (m == 0 or d != 0))
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(f"{v:g}" for v in s.values()))
def test_sgd_bit_for_bit(switches):
    a, b = both(lambda m: SGD(m, lr=0.1, **switches), lambda p: torch.optim.SGD(p, lr=0.1, foreach=False, **switches))
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("lr, decay, clip", [(1e-2, 0.0, 1.0), (0.5, 0.1, 1.0), (1e-2, 0.0, 1.5)])
def test_adafactor(dtype, tolerance, lr, decay, clip):
    """torch caps the rate at 1/sqrt(t), decays by lr, and bounds the variance instead of adding eps to squares."""
    a, b = both(
        lambda m: Adafactor(
            m, lr=lr, weight_decay=decay, clip_threshold=clip, relative_step="capped", decay_by_lr=True
        ),
        lambda p: torch.optim.Adafactor(p, lr=lr, weight_decay=decay, d=clip, foreach=False),
        dtype,
    )
    close(a, b, tolerance)


def test_a_state_of_adamw_loads_from_torch():
    """The state keys are torch's, so that a run can change over."""
    a, b = zoo.net(), zoo.net()
    theirs = torch.optim.AdamW(b.parameters(), lr=1e-2)
    zoo.train(theirs, b, 5)
    a.load_state_dict(b.state_dict())
    ours = AdamW(a, lr=1e-2)
    saved, fresh = theirs.state_dict(), ours.state_dict()
    ours.load_state_dict({"state": saved["state"], "param_groups": fresh["param_groups"]})
    zoo.train(ours, a, 5, start=5)
    zoo.train(theirs, b, 5, start=5)
    close(a, b, 1e-6)
