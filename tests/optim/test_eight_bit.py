"""A first moment in one byte: against the rule written out in numpy, what is refused, and what stays visible."""

import copy
import math

import numpy as np
import pytest
import torch
import zoo
from compiler import both_ways, without_kernel
from torch import nn

from lowmem import partition
from lowmem.optim import AdamMini, AdamW, FusedBackward, Lion
from lowmem.optim.core.eight_bit import BLOCK, CODE, decoded, encode, largest, scales

STEPS, SIZE = 30, 700
RULES = {"adam_mini": AdamMini, "adamw": AdamW, "lion": Lion}


def kept(m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scales) of a moment, block by block."""
    codes, found = np.zeros(m.size, np.int8), []
    for start in range(0, m.size, 256):
        block = m[start : start + 256]
        scale = np.abs(block).max()
        found.append(scale)
        size = np.sqrt(np.abs(block) / max(scale, 1e-30))
        codes[start : start + 256] = np.sign(block) * np.round(127 * size)
    return codes, np.array(found, np.float32)


def read(codes: np.ndarray, found: np.ndarray) -> np.ndarray:
    root = codes.astype(np.float64) / 127
    return root * np.abs(root) * np.repeat(found.astype(np.float64), 256)[: codes.size]


def twin(rule: str, w: np.ndarray, gradients: list[np.ndarray], blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """The papers' rules in double precision with a moment that is stored in 8 bits between steps."""
    lr, eps, beta1, beta2 = 1e-2, 1e-8, 0.9, 0.99
    codes, found = kept(np.zeros(w.size))
    v = np.zeros(blocks if rule == "adam_mini" else w.size)
    for t, g in enumerate(gradients, 1):
        m = read(codes, found)
        if rule == "lion":
            w = w - lr * np.sign(beta1 * m + (1 - beta1) * g)
            m = beta2 * m + (1 - beta2) * g
        else:
            m = beta1 * m + (1 - beta1) * g
            square = (g.reshape(blocks, -1) ** 2).mean(1) if rule == "adam_mini" else g**2
            v = beta2 * v + (1 - beta2) * square
            rate = lr / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
            w = w - (np.repeat(rate, w.size // blocks) if rule == "adam_mini" else rate) * m
        codes, found = kept(m)
    return w, codes


def draws() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.standard_normal(SIZE) ** 3 * 10.0 ** generator.uniform(-6, 0, SIZE) for _ in range(STEPS + 1)]


@pytest.mark.parametrize("rule", RULES)
@both_ways
def test_the_rules_with_an_8_bit_moment_are_those_written_out(rule, way, monkeypatch):
    if way == "stages":
        without_kernel(monkeypatch)
    start, *gradients = draws()
    model = nn.Linear(100, 7, bias=False)  # 700 weights: blocks of 100 for the second moment, of 256 for the scales
    with torch.no_grad():
        model.weight.copy_(torch.tensor(start).view(7, 100))
    chosen = partition(model, overrides={"weight": "row"}) if rule == "adam_mini" else model
    optimizer = RULES[rule](chosen, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0, state_dtype="int8")
    for g in gradients:
        model.weight.grad = torch.tensor(g, dtype=torch.float32).view(7, 100)
        optimizer.step()
    want, codes = twin(rule, start, gradients, 7)
    found = model.weight.detach().double().flatten().numpy()
    # a number on the border of two codes may go to either: then they and the weights differ by little, and rarely
    apart = np.abs(optimizer.state[model.weight]["exp_avg"].flatten().numpy().astype(int) - codes)
    assert apart.max() <= 1 and apart.mean() < 0.01
    assert np.abs(found - want).max() < (2.1e-2 if rule == "lion" else 1e-3)  # Lion: a sign may turn once
    assert np.median(np.abs(found - want)) < 1e-5


def test_one_byte_and_a_sixty_fourth_per_element():
    model = nn.Linear(512, 512, bias=False)
    optimizer = Lion(model, state_dtype="int8")
    model.weight.grad = torch.randn(512, 512)
    optimizer.step()
    assert optimizer.state_bytes() == 512 * 512 * (1 + 4 / BLOCK)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_to_fp32_and_back_is_exact(size):
    x = torch.randn(size, generator=torch.Generator().manual_seed(size)) ** 3 * 1e-5
    scale, codes = scales(largest(x, None, size)), torch.empty(size, dtype=torch.int8)
    encode(codes, x, scale)
    back = decoded(codes, scale)
    assert (back - x).abs().max() <= x.abs().max() / 127  # half a step of the root, at most
    again, other = scales(largest(back, None, size)), torch.empty(size, dtype=torch.int8)
    encode(other, back, again)
    assert torch.equal(scale, again) and torch.equal(codes, other)


def test_stochastic_rounding_of_a_moment_is_right_on_average():
    torch.manual_seed(0)
    x = torch.randn(300)
    scale, codes = scales(largest(x, None, 300)), torch.empty(300, dtype=torch.int8)
    total = torch.zeros(300, dtype=torch.float64)
    for _ in range(1000):
        encode(codes, x, scale, None, "stochastic")
        total += decoded(codes, scale)
    step = 2 * (x.abs() / x.abs().max()).sqrt() * x.abs().max() / 127 + 2e-4  # distance of two codes at x
    assert ((total / 1000 - x).abs() <= 5 * step / 1000**0.5).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@both_ways
def test_a_gradient_that_is_no_number_is_never_hidden_in_codes(bad, way, monkeypatch):
    if way == "stages":
        without_kernel(monkeypatch)
    for cls in RULES.values():
        model = nn.Linear(20, 30, bias=False)
        optimizer = cls(model, lr=1e-2, state_dtype="int8")
        for g in (1.0, bad):
            model.weight.grad = torch.full((30, 20), 0.5)
            model.weight.grad[0, 3] = g
            optimizer.step()
        state = optimizer.state[model.weight]
        moment = decoded(state["exp_avg"], state["exp_avg_scale"]).flatten()
        assert moment[:256].isnan().all() and moment[256:].isfinite().all()  # its block, and no other


@pytest.mark.parametrize("how", ["raise", "skip"])
def test_a_step_that_is_refused_or_skipped_leaves_codes_and_scales(how):
    model = nn.Linear(20, 30, bias=False)
    optimizer = AdamMini(partition(model, overrides={"weight": "row"}), state_dtype="int8", nonfinite=how)
    model.weight.grad = torch.ones(30, 20)
    optimizer.step()
    before, weights = zoo.state_tensors(optimizer), zoo.snapshot(model)
    model.weight.grad[4, 4] = math.nan
    if how == "raise":
        with pytest.raises(FloatingPointError, match="weight: gradient holds inf or nan; nothing was updated"):
            optimizer.step()
    else:
        optimizer.step()
    assert zoo.same(before, zoo.state_tensors(optimizer)) and zoo.same(weights, zoo.snapshot(model))


@pytest.mark.parametrize("how", ["raise", "skip", "ignore"])
def test_inside_backward_a_nan_is_refused_or_skipped_without_a_trace_or_shows(how):
    model = zoo.language_model()
    optimizer = FusedBackward(AdamMini(model, lr=1e-3, state_dtype="int8", nonfinite=how))
    zoo.apply(optimizer, zoo.language_loss(model, 0))
    before, weights = zoo.state_tensors(optimizer), zoo.snapshot(model)
    act = lambda: zoo.apply(optimizer, zoo.language_loss(model, 1) * math.nan)  # noqa: E731
    if how == "raise":
        with pytest.raises(FloatingPointError, match="gradient holds inf or nan; nothing was updated"):
            act()
    else:
        act()
    after = zoo.state_tensors(optimizer)
    assert (zoo.same(before, after) and zoo.same(weights, zoo.snapshot(model))) == (how != "ignore")
    scales = torch.cat([value for key, value in after.items() if key.endswith("exp_avg_scale")])
    assert bool(scales.isnan().all() if how == "ignore" else scales.isfinite().all())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("key", "size"), [("exp_avg_scale", 7), ("exp_avg", 599)])
def test_a_state_of_another_size_put_in_by_hand_is_refused_and_no_memory_overrun(rule, key, size):
    model = nn.Linear(20, 30, bias=False)
    optimizer = RULES[rule](model, state_dtype="int8")
    model.weight.grad = torch.ones(30, 20)
    optimizer.step()
    optimizer.state[model.weight][key] = torch.ones(size).to(optimizer.state[model.weight][key].dtype)
    before, weights = zoo.state_tensors(optimizer), zoo.snapshot(model)
    with pytest.raises(RuntimeError, match=f"{key} has {size} elements, not (3|600); to reset state, assign") as caught:
        optimizer.step()
    after = zoo.state_tensors(optimizer)
    assert zoo.same(weights, zoo.snapshot(model)) and "\n" not in str(caught.value)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.endswith("step"))


def test_a_checkpoint_from_before_there_were_codes_goes_into_them():
    model, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for key in ("rounding", "state_dtype", "state_code"):
            group.pop(key, None)
    coded = FusedBackward(AdamMini(model, lr=1e-3, state_dtype="int8"))
    coded.load_state_dict(saved)
    zoo.apply(coded, zoo.language_loss(model, 9))
    assert all(state["exp_avg"].dtype == torch.int8 and state["step"] == 4 for state in coded.state.values())


def trained(**keywords):
    model = zoo.language_model()
    optimizer = AdamMini(model, lr=1e-3, **keywords)
    for step in range(3):
        zoo.apply(optimizer, zoo.language_loss(model, step))
    return model, optimizer


def test_a_state_in_codes_goes_into_fp32_and_back_unchanged():
    model, optimizer = trained(state_dtype="int8")
    plain, again = AdamMini(model), AdamMini(model, state_dtype=torch.int8)
    plain.load_state_dict(optimizer.state_dict())
    assert all(state["exp_avg"].dtype == torch.float32 and len(state) == 3 for state in plain.state.values())
    again.load_state_dict(plain.state_dict())
    assert zoo.same(zoo.state_tensors(optimizer), zoo.state_tensors(again))


def test_a_state_in_fp32_goes_into_codes_within_their_step():
    model, optimizer = trained()
    coded = AdamMini(model, state_dtype="int8")
    coded.load_state_dict(optimizer.state_dict())
    for p in model.parameters():
        want, state = optimizer.state[p]["exp_avg"], coded.state[p]
        found = decoded(state["exp_avg"], state["exp_avg_scale"])
        assert (found - want).abs().max() <= want.abs().max() / 127
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], state["exp_avg_sq"])


def other_code(saved):
    saved["param_groups"][0]["state_code"] = "linear, blocks of 2048"


def other_blocks(saved):
    saved["state"][0]["exp_avg_scale"] = torch.ones(7)


def no_code(saved):
    saved["param_groups"][0].pop("state_code")


def no_scales(saved):
    del saved["state"][0]["exp_avg_scale"]


@pytest.mark.parametrize(
    "spoil, match",
    [
        (other_code, f"8-bit code 'linear, blocks of 2048', this AdamMini reads '{CODE}'"),
        (other_blocks, r"saved exp_avg is in 8-bit codes with 7 scales, its \d+ elements need \d+"),
        (no_scales, "saved exp_avg is in 8-bit codes with no scales"),
        (no_code, f"8-bit code None, this AdamMini reads '{CODE}'"),
    ],
)
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_state_in_other_codes_is_refused_in_one_line(spoil, match, dtype):
    model, optimizer = trained(state_dtype="int8")
    saved = copy.deepcopy(optimizer.state_dict())
    spoil(saved)
    fresh = AdamMini(model, state_dtype=dtype)
    with pytest.raises(ValueError, match=match) as caught:
        fresh.load_state_dict(saved)
    assert "\n" not in str(caught.value) and not fresh.state


def test_inside_backward_the_8_bit_moment_takes_the_same_steps():
    results = []
    for fused in (False, True):
        model = zoo.language_model()
        optimizer = AdamMini(model, lr=1e-3, state_dtype="int8")
        optimizer = FusedBackward(optimizer) if fused else optimizer
        for step in range(4):
            zoo.apply(optimizer, zoo.language_loss(model, step))
        results.append((zoo.snapshot(model), zoo.state_tensors(optimizer)))
    assert zoo.same(results[0][0], results[1][0]) and zoo.same(results[0][1], results[1][1])


@pytest.mark.parametrize("name", ["sgd-nesterov", "adafactor", "came", "sm3", "lamb"])
def test_a_rule_without_an_8_bit_form_says_so(name):
    cls, fixed = zoo.SETTINGS[name]
    with pytest.raises(ValueError, match="state_dtype=int8: is for the first moment of AdamMini, AdamW and Lion"):
        cls(zoo.net(), **{**fixed, "state_dtype": "int8"})
