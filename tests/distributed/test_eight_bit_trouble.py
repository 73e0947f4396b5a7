"""8-bit first moments on several processes: gradients that are no numbers, and states that do not fit. One line each, on
every rank, and nothing lost. Inside backward and in step(), whole, under Zero1 and as DTensors."""

import copy
import math

import pytest
import ranks
import sharded_models
import torch
import zoo

from lowmem.optim import AdamMini, FusedBackward
from lowmem.optim.core.sharding import local
from lowmem.optim.core.zero1 import Zero1

pytestmark = pytest.mark.slow


def build(how: str, world: int, nonfinite: str):
    """(model, what takes steps) in one of the ways."""
    model = sharded_models.build()
    model = sharded_models.sharded("fsdp", model, world) if how.startswith("fsdp") else model
    rule = AdamMini(model, lr=1e-2, state_dtype="int8", nonfinite=nonfinite)
    if how == "zero1":
        return model, Zero1(rule)
    return model, FusedBackward(rule) if how.endswith("backward") else rule


def step(model, optimizer, rank: int, bad: float | None) -> None:
    """One step on the same batch everywhere. bad: a number in one gradient (of DTensors: in rank 1's part), or inside
    backward in the loss."""
    rows = sharded_models.batch(0, 4)
    if isinstance(optimizer, FusedBackward):
        optimizer.backward(lambda: sharded_models.loss_of(model, rows) * (1.0 if bad is None else bad))
    else:
        sharded_models.loss_of(model, rows).backward()
        if bad is not None:
            gradient = [p for p in model.parameters() if p.ndim == 2][-2].grad
            part = local(gradient)
            if part is gradient or rank == 1:
                part.view(-1)[-1] = bad
    optimizer.step()
    optimizer.zero_grad()


def kept(model, optimizer) -> dict:
    """Weights and state of this rank."""
    inner = optimizer if not hasattr(optimizer, "inner") else optimizer.inner
    found = {f"w {i}": local(p.detach()).clone() for i, p in enumerate(model.parameters())}
    for i, state in enumerate(inner.state.values()):
        found |= {f"s {i} {key}": local(value).clone() for key, value in state.items()}
    return found


def gradients_that_are_none(rank: int, world: int, how: str) -> dict:
    """What happens to a nan in a gradient, by setting of nonfinite."""
    found = {}
    for nonfinite in ("raise", "skip", "ignore"):
        model, optimizer = build(how, world, nonfinite)
        step(model, optimizer, rank, None)
        before = kept(model, optimizer)
        try:
            step(model, optimizer, rank, math.nan)
            found[nonfinite] = "no error"
        except FloatingPointError as error:
            found[nonfinite] = str(error)
        after = kept(model, optimizer)
        found[f"{nonfinite} same"] = zoo.same(before, after)
        scales = [value for key, value in after.items() if key.endswith("exp_avg_scale")]
        found[f"{nonfinite} nan scales"] = sum(int(scale.isnan().sum()) for scale in scales)
    return found


@pytest.mark.parametrize("how", ["zero1", "fsdp", "fsdp backward"])
def test_a_nan_is_refused_or_skipped_without_a_trace_or_shows_in_one_scale_on_every_rank(how):
    for found in ranks.launch(gradients_that_are_none, 2, how):
        assert "gradient holds inf or nan; nothing was updated" in found["raise"] and "\n" not in found["raise"], found
        assert found["raise same"] and found["skip same"] and found["skip"] == found["ignore"] == "no error", found
        assert found["raise nan scales"] == found["skip nan scales"] == 0, found
        assert found["ignore nan scales"] >= 1 and not found["ignore same"], found


def states_that_do_not_fit(rank: int, world: int, how: str) -> dict:
    """Messages of loading states of other codes, blocks and without scales; and whether an old checkpoint goes in."""
    model, optimizer = build(how, world, "ignore")
    step(model, optimizer, rank, None)
    saved, found = optimizer.state_dict(), {}
    first = next(iter(saved["state"]))

    def spoiled(case: str) -> dict:
        groups = copy.deepcopy(saved["param_groups"])
        state = {i: dict(entry) for i, entry in saved["state"].items()}
        if case == "code":
            groups[0]["state_code"] = "linear, blocks of 2048"
        elif case == "no code":
            groups[0].pop("state_code")
        elif case == "blocks":
            state[first]["exp_avg_scale"] = torch.ones(70)
        elif case == "no scales":
            del state[first]["exp_avg_scale"]
        return {**saved, "param_groups": groups, "state": state}

    for case in ("code", "no code", "blocks", "no scales"):
        fresh_model, fresh = build(how, world, "ignore")
        step(fresh_model, fresh, rank, None)
        before = kept(fresh_model, fresh)
        try:
            fresh.load_state_dict(spoiled(case))
            found[case] = "no error"
        except ValueError as error:
            found[case] = str(error)
        found[f"{case} same"] = zoo.same(before, kept(fresh_model, fresh))
    alone = sharded_models.build()
    old = AdamMini(alone, lr=1e-2)
    zoo.apply(old, sharded_models.loss_of(alone, sharded_models.batch(0, 4)))
    state = old.state_dict()
    for group in state["param_groups"]:
        for key in ("rounding", "state_dtype", "state_code"):  # as before there was a choice
            group.pop(key, None)
    fresh_model, fresh = build(how, world, "ignore")
    fresh.load_state_dict(state)
    step(fresh_model, fresh, rank, None)
    found["old"] = sum(value.dtype == torch.int8 for value in kept(fresh_model, fresh).values())
    found["tensors"] = len(list(model.parameters()))
    return found


@pytest.mark.parametrize("how", ["zero1", "fsdp", "fsdp backward"])
def test_states_that_do_not_fit_are_refused_in_one_line_and_old_checkpoints_become_codes(how):
    for found in ranks.launch(states_that_do_not_fit, 2, how):
        for case, says in {
            "code": "8-bit code 'linear, blocks of 2048', this AdamMini reads",
            "no code": "8-bit code None, this AdamMini reads",
            "blocks": "in 8-bit codes with 70 scales, its ",
            "no scales": "in 8-bit codes with no scales",
        }.items():
            assert says in found[case] and "\n" not in found[case] and found[f"{case} same"], (case, found)
        assert found["old"] == found["tensors"], found
