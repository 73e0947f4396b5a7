"""torch.amp.GradScaler around step(): a step whose gradients overflow leaves no trace, others see unscaled gradients."""

import pytest
import torch
import zoo

from lowmem.optim import CAME, SGD, Adafactor, AdamMini, AdamW, Lion

RULES = [AdamMini, AdamW, Lion, Adafactor, CAME, SGD]
SCALE = 1024.0


def train(rule, scaled: bool, overflow: tuple[int, ...] = ()):
    """Five steps, of which those in `overflow` have an infinite gradient; without a scaler they are left out."""
    model = zoo.net()
    optimizer = rule(model, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)
    scales = []
    for step in range(5):
        optimizer.zero_grad()
        loss = model(zoo.batch(step))
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
