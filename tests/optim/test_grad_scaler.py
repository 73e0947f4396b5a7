"""torch.amp.GradScaler around step(): a step whose gradients overflow leaves no trace, others see unscaled gradients."""

import copy
import functools

import kernel_cases
import pytest
import torch
import zoo
from launches import Launches
from torch import nn

from lowmem.optim import CAME, SGD, Adafactor, AdamMini, AdamW, Lion, adamw
from lowmem.optim.core import overflow

RULES = [AdamMini, AdamW, Lion, Adafactor, CAME, SGD]
SCALE = 1024.0


def train(rule, scaled: bool, overflow: tuple[int, ...] = (), dtype=torch.float32):
    """Five steps, of which those in `overflow` have an infinite gradient; without a scaler they are left out."""
    model = zoo.net(dtype)
    optimizer = rule(model, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)
    scales = []
    for step in range(5):
        optimizer.zero_grad()
        loss = model(zoo.batch(step, dtype))
        if not scaled:
            if step not in overflow:
                loss.backward()
                optimizer.step()
            continue
        scaler.scale(loss).backward()
        if step in overflow:
            next(model.parameters()).grad.view(-1)[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return {**zoo.snapshot(model), **zoo.state_tensors(optimizer)}, scales, optimizer


@pytest.mark.parametrize("rule", RULES)
def test_steps_with_a_scaler_are_those_without_and_an_overflow_leaves_no_trace(rule):
    found, scales, optimizer = train(rule, True, overflow=(0, 2))
    plain, _, _ = train(rule, False, overflow=(0, 2))
    assert zoo.same(found, plain)  # the scale is a power of two, so that scaling is exact
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}
    assert scales == [SCALE / 2, SCALE / 2, SCALE / 4, SCALE / 4, SCALE / 4]


@pytest.mark.parametrize("rule", [AdamMini, AdamW])
def test_gradients_unscaled_and_clipped_by_the_script_are_stepped_as_they_are(rule):
    def clipped(scaled):
        model = zoo.net()
        optimizer = rule(model, lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=scaled)
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(model(zoo.batch(step))).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        return zoo.snapshot(model)

    assert zoo.same(clipped(True), clipped(False))


CODED = [functools.partial(rule, state_dtype="int8") for rule in (AdamMini, AdamW, Lion)]
HALF = [functools.partial(AdamMini, rounding="corrected"), functools.partial(SGD, momentum=0.9, nesterov=True)]


def named(rule) -> str:
    settings = getattr(rule, "keywords", {})
    return " ".join([getattr(rule, "func", rule).__name__, *map(str, settings.values())])


@pytest.fixture
def cpu_is_a_gpu(monkeypatch):
    """Numbers of the CPU may not be read in step(), and torch's fused kernel is AdamW's on it."""
    monkeypatch.setattr(overflow, "PLACES", ("cpu",))
    monkeypatch.setattr(adamw, "ON", ("cpu",))


def told(rule, told: bool):
    """The rule through its stages or torch's kernel; told: by a scaler that leaves everything to step()."""

    def build(model, lr):
        optimizer = kernel_cases.by_stages(rule(model, lr=lr))
        if isinstance(optimizer, AdamW) and optimizer.defaults["state_dtype"] is None:
            optimizer.ways_on_cpu = (adamw.in_one_kernel,)
        optimizer.skips_on_device = told
        return optimizer

    return build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", [*RULES, *CODED, *HALF], ids=named)
def test_a_scaler_that_leaves_all_to_the_step_gives_the_same_bits(rule, dtype, cpu_is_a_gpu):
    found, scales, optimizer = train(told(rule, True), True, overflow=(0, 2), dtype=dtype)
    expected, usual, _ = train(told(rule, False), True, overflow=(0, 2), dtype=dtype)
    assert zoo.same(found, expected) and scales == usual
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}


@pytest.mark.parametrize("rule", [*RULES, *CODED], ids=named)
def test_an_overflow_that_the_host_has_not_heard_of_changes_no_bit_and_is_not_counted_when_saved(rule, cpu_is_a_gpu):
    model = zoo.net()
    optimizer = told(rule, True)(model, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for step in range(3):
        before = {**zoo.snapshot(model), **zoo.state_tensors(optimizer)}
        optimizer.zero_grad()
        scaler.scale(model(zoo.batch(step))).backward()
        if step == 2:
            model.scale.grad.fill_(torch.nan)
        scaler.step(optimizer)
        scaler.update()
    after = {**zoo.snapshot(model), **zoo.state_tensors(optimizer)}
    steps = {key for key in before if key.endswith("step")}
    assert zoo.same({k: v for k, v in after.items() if k not in steps}, {k: before[k] for k in before.keys() - steps})
    assert {float(state["step"]) for state in optimizer.state_dict()["state"].values()} == {2.0}
    again = copy.deepcopy(optimizer)
    assert again.skips_on_device and {float(state["step"]) for state in again.state.values()} == {2.0}


@pytest.mark.parametrize("rule", [*RULES, *CODED], ids=named)
def test_nothing_is_read_from_the_gpu_but_the_number_that_is_sent(rule, monkeypatch):
    meta, sent = torch.device("meta"), []
    monkeypatch.setattr(overflow, "PLACES", ("meta",))
    monkeypatch.setattr(adamw, "ON", ("meta",))
    monkeypatch.setattr(overflow, "download", lambda x: sent.append(x) or (torch.ones(()), lambda: None))
    p = nn.Parameter(torch.empty(6, 40, device=meta))
    optimizer = rule(nn.ParameterList([p]), lr=1e-2)
    optimizer.skips_on_device = True
    assert optimizer._step_supports_amp_scaling
    with Launches() as counter:
        for _ in range(2):
            p.grad = torch.empty_like(p)
            optimizer.grad_scale, optimizer.found_inf = torch.empty((), device=meta), torch.empty((), device=meta)
            counter.restart()
            optimizer.step()
            assert counter.waits == 0 and counter.count > 0
    assert len(sent) == 2 and all(x is optimizer.found_inf for x in sent[1:])
    assert optimizer.state_dict()["state"][0]["step"] == 0.0


@pytest.mark.parametrize("settings", [dict(), dict(nonfinite="skip"), dict(offload=True)], ids=str)
def test_who_did_not_ask_or_waits_anyway_is_stepped_as_before(settings, cpu_is_a_gpu):
    optimizer = AdamMini(zoo.net(), lr=1e-2, **settings)
    optimizer.skips_on_device = bool(settings)
    assert not optimizer._step_supports_amp_scaling


def test_on_a_cpu_nothing_is_waited_for_and_the_c_kernel_runs():
    optimizer = AdamMini(zoo.net(), lr=1e-2)
    optimizer.skips_on_device = True
    assert not optimizer._step_supports_amp_scaling
