"""Stochastic rounding is unbiased and lands on neighbours; nearest rounding stalls where it does not."""

import math

import pytest
import torch
import zoo
from torch import nn

from lowmem.optim import SGD, AdamW, Lomo
from lowmem.optim.core.rounding import low_bits, round_into, with_low_bits

dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def neighbours(x, dtype):
    """(largest number of dtype <= x, smallest >= x) for fp32 x inside the dtype's range, by bit stepping."""
    near = x.to(dtype)
    step = near.view(torch.int16)
    up = torch.where(near >= 0, step + 1, step - 1)
    down = torch.where(near > 0, step - 1, torch.where(near == 0, torch.full_like(step, -32767), step + 1))
    above, below = up.view(dtype).float(), down.view(dtype).float()
    near = near.float()
    return torch.where(near <= x, near, below), torch.where(near >= x, near, above)


def samples(dtype):
    """fp32 numbers over all magnitudes of the dtype, signs mixed, subnormals included."""
    lowest = -26 if dtype == torch.float16 else -134
    highest = 15 if dtype == torch.float16 else 120
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(lowest, highest, (2000,), generator=generator).double()
    mantissas = 1 + torch.rand(2000, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (2000,), generator=generator) * 2 - 1
    mantissas[::10] = 1 + 2.0**-20  # just above a power of two, where the spacing below is half as wide
    mantissas[1::10] = 2 - 2.0**-20
    return (signs * mantissas * 2.0**exponents).float()


def rounded(x, dtype, rounding="stochastic"):
    out = torch.empty_like(x, dtype=dtype)
    round_into(out, x, rounding)
    return out


@dtypes
def test_it_lands_on_a_neighbour(dtype):
    torch.manual_seed(0)
    x = samples(dtype)
    below, above = neighbours(x, dtype)
    seen_below = seen_above = 0
    for _ in range(20):
        y = rounded(x, dtype).float()
        wrong = (y != below) & (y != above)
        assert not wrong.any(), (x[wrong][:5], y[wrong][:5], below[wrong][:5], above[wrong][:5])
        seen_below += int((y == below).sum())
        seen_above += int((y == above).sum())
    assert seen_below > 10_000 and seen_above > 10_000


@dtypes
def test_it_is_unbiased(dtype):
    """The mean of many roundings is within four standard errors of the number, for each of 60 numbers."""
    torch.manual_seed(1)
    draws = 4000
    for x in samples(dtype)[:60]:
        below, above = (t.double().item() for t in neighbours(x[None], dtype))
        y = rounded(x.expand(draws).contiguous(), dtype).double()
        chance = (x.item() - below) / (above - below) if above > below else 0.0
        error = (above - below) * math.sqrt(max(chance * (1 - chance), 1 / draws) / draws)
        assert abs(y.mean().item() - x.item()) <= 4 * error, (x.item(), y.mean().item(), error)


@dtypes
def test_exact_numbers_zeros_infinities_and_nan_stay(dtype):
    torch.manual_seed(0)
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**-14, torch.inf, -torch.inf, torch.nan])
    for _ in range(50):
        y = rounded(exact, dtype).float()
        assert torch.equal(y.nan_to_num(nan=7.0), exact.nan_to_num(nan=7.0))
        assert torch.equal(torch.signbit(y[:2]), torch.tensor([False, True]))


@dtypes
def test_the_largest_numbers_do_not_overflow_by_noise(dtype):
    torch.manual_seed(0)
    largest = torch.tensor([torch.finfo(dtype).max, -torch.finfo(dtype).max])
    for _ in range(200):
        assert torch.equal(rounded(largest, dtype).float(), largest)


def test_it_draws_from_the_global_generator():
    x = torch.full((1000,), 1.001)
    torch.manual_seed(5)
    first, second = rounded(x, torch.bfloat16), rounded(x, torch.bfloat16)
    torch.manual_seed(5)
    assert torch.equal(first, rounded(x, torch.bfloat16)) and not torch.equal(first, second)


@pytest.mark.parametrize("target", [torch.float32, torch.float64], ids=str)
def test_wide_targets_are_never_rounded_stochastically(target):
    x = torch.randn(100)
    assert torch.equal(rounded(x, target), x.to(target))


@dtypes
@pytest.mark.parametrize("make", [SGD, Lomo], ids=["sgd", "lomo"])
def test_tiny_updates_stall_under_nearest_and_arrive_under_stochastic_rounding(dtype, make):
    """1000 steps of 1e-5 from 1: the unit in the last place is 4e-3 (bf16) or 5e-4 (fp16) below 1."""
    torch.manual_seed(0)
    end = {}
    for rounding in ("nearest", "stochastic"):
        p = nn.Parameter(torch.ones(4000, dtype=dtype))
        optimizer = make([p], lr=1e-5, rounding=rounding)
        for _ in range(1000):
            if make is Lomo:
                optimizer.backward(p.sum())
            else:
                p.grad = torch.ones_like(p)
            optimizer.step()
        end[rounding] = p.detach().float()
    assert (end["nearest"] == 1).all()
    spread = end["stochastic"].std().item() / math.sqrt(4000)
    assert abs(end["stochastic"].mean().item() - 0.99) < 5 * spread + 1e-4


@pytest.mark.parametrize("name", zoo.SETTINGS)
def test_every_rule_rounds_weights_and_moments_stochastically(name):
    """Two seeds give two results, each near the fp32 one; nearest rounding gives one."""
    cls, fixed = zoo.SETTINGS[name]
    ends = {}
    for rounding, seed in (("stochastic", 1), ("stochastic", 2), ("nearest", 1), ("nearest", 2)):
        model = zoo.net(torch.bfloat16)
        optimizer = cls(model, **fixed, rounding=rounding)
        torch.manual_seed(seed)
        zoo.train(optimizer, model, 3)
        ends[rounding, seed] = zoo.snapshot(model)
    assert zoo.same(ends["nearest", 1], ends["nearest", 2])
    assert not zoo.same(ends["stochastic", 1], ends["stochastic", 2])
    for key, value in ends["nearest", 1].items():
        assert (ends["stochastic", 1][key] - value).abs().max() < 0.1


def test_16_bit_moments_move_on_average_under_stochastic_rounding():
    """beta2 = 0.999 shrinks a bf16 moment by less than half a unit: nearest keeps it for ever."""
    ends = {}
    for rounding in ("nearest", "stochastic"):
        torch.manual_seed(0)
        p = nn.Parameter(torch.zeros(4000, dtype=torch.bfloat16))
        optimizer = AdamW([p], lr=0.0, betas=(0.0, 0.999), rounding=rounding)
        p.grad = torch.ones_like(p)
        optimizer.step()
        for _ in range(100):
            p.grad = torch.zeros_like(p)
            optimizer.step()
        ends[rounding] = optimizer.state[p]["exp_avg_sq"].float()
    expected = 0.001 * 0.999**100
    assert (ends["nearest"] > 0.00099).all()
    assert ends["stochastic"].mean().item() == pytest.approx(expected, rel=0.01)


def test_eight_more_bits_bring_a_weight_within_2_to_the_minus_15_and_hide_nothing():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 10_000)
    high = x.bfloat16()
    back = with_low_bits(high, low_bits(x, high))
    assert ((back - x).abs() <= x.abs() * 2.0**-15).all() and ((high - x).abs() > x.abs() * 2.0**-10).any()
    assert ((back - high).abs() <= high.float().abs() * 2.0**-8).all()  # half a unit in the last place of bf16
    odd = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3.4e38, -3.4e38, 1e-45])
    again = with_low_bits(odd.bfloat16(), low_bits(odd, odd.bfloat16()))
    assert torch.equal(again[:4], odd[:4]) and again[4].isnan() and again[5:7].isinf().all() and again[7].abs() < 1e-40


def test_corrected_weights_are_for_bf16():
    model = zoo.net(torch.float16)
    optimizer = SGD(model, rounding="corrected")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = zoo.snapshot(model)
    with pytest.raises(ValueError, match="rounding='corrected' is for bf16 weights, this one is fp16"):
        optimizer.step()
    assert zoo.same(before, zoo.snapshot(model))


def distance(case, rounding: str, steps: int = 60) -> float:
    """|bf16 run - fp32 run| / |fp32 run - start| on the same gradients, over all weights."""
    start = [p.detach().bfloat16() for p in zoo.net().parameters()]
    runs = []
    for dtype, keywords in ((torch.float32, {}), (torch.bfloat16, dict(rounding=rounding, state_dtype=torch.float32))):
        torch.manual_seed(1)
        parameters = [torch.nn.Parameter(p.to(dtype).clone()) for p in start]
        optimizer = zoo.loose(case, parameters, lr=1e-4, **keywords)
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            zoo.feed(
                case,
                optimizer,
                parameters,
                [(1 + 0.3 * torch.randn(p.shape, generator=generator)).to(dtype) for p in parameters],
            )
        corrected = [
            with_low_bits(p, s["weight_low"]) if "weight_low" in (s := optimizer.state.get(p, {})) else p.float()
            for p in parameters
        ]
        runs.append(torch.cat([p.detach().flatten() for p in corrected]))
    moved = runs[0] - torch.cat([p.float().flatten() for p in start])
    return float((runs[1] - runs[0]).norm() / moved.norm())


@pytest.mark.parametrize(
    "name", ["sgd", "sgd-nesterov", "adamw", "adam_mini", "lion", "lamb", "lomo", "adafactor", "came", "sm3"]
)
def test_eight_more_bits_bring_every_rule_near_the_fp32_run(name):
    case = next(case for case in zoo.ALL if case.name == name)
    nearest, corrected = distance(case, "nearest"), distance(case, "corrected")
    print(name, nearest, distance(case, "stochastic"), corrected)
    assert corrected < 0.1 and corrected < nearest / 4
