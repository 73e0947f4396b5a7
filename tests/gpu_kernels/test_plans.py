"""Tables are kept between steps while every address stays, memory that is not meant is never touched, and what the kernels
cannot do is left to the stages."""

import logging
import sys

import pytest
import torch
import zoo
from block_layouts import optimizer_over
from kernel_cases import LAYOUTS, by_kernels, by_stages, close, gradients, started
from torch import nn

from lowmem.models import gpt2, llama
from lowmem.optim import SGD, AdamMini, AdamW
from lowmem.optim.core import gpu_step, gpu_tables


@pytest.fixture
def plans(monkeypatch):
    """Grows with every plan that is built."""
    built = []
    plan = gpu_step.plan
    monkeypatch.setattr(gpu_step, "plan", lambda *given: built.append(given) or plan(*given))
    return built


def pair():
    """An optimizer over rows and coordinates with a first step behind it."""
    optimizer, parameters = optimizer_over([LAYOUTS["rows"], LAYOUTS["coordinates"], LAYOUTS["long heads"]], 0)
    gradients(parameters, 0)
    by_kernels(optimizer).step()
    assert optimizer.step_kernel == "Triton"  # what a run's record says
    return optimizer, parameters


def test_a_second_step_with_other_gradients_builds_no_plan(plans):
    optimizer, parameters = pair()
    for step in (1, 2):
        for p in parameters:
            p.grad = None
        kept = [torch.empty(1000) for _ in range(step)]  # so that gradients get other addresses
        gradients(parameters, step)
        optimizer.step()
        assert kept
    assert len(plans) == 1


@pytest.mark.parametrize("what", ["p", "exp_avg", "exp_avg_sq"])
def test_a_moved_tensor_is_stepped_where_it_is_now_and_its_old_memory_left_alone(what, plans):
    optimizer, parameters = pair()
    twin, others = pair()
    built = len(plans)
    p = parameters[0]
    old = p.data if what == "p" else optimizer.state[p][what]
    before = old.clone()
    if what == "p":
        p.data = old.clone()
    else:
        optimizer.state[p][what] = old.clone()
    gradients(parameters, 1)
    optimizer.step()
    assert torch.equal(old, before) and len(plans) == built + 1
    gradients(others, 1)
    by_stages(twin).step()
    close([x.detach() for x in parameters], [x.detach() for x in others])


def test_a_tensor_of_another_size_at_a_known_address_is_not_overrun():
    """The first moment becomes a shorter view of the same memory: seen before any launch."""
    optimizer, parameters = pair()
    p = parameters[0]
    whole = optimizer.state[p]["exp_avg"]
    optimizer.state[p]["exp_avg"] = whole.view(-1)[: whole.numel() // 2]
    before = whole.clone()
    gradients(parameters, 1)
    with pytest.raises(RuntimeError, match="exp_avg has 120 elements, not 240"):
        optimizer.step()
    assert torch.equal(whole, before)


def test_a_gradient_of_another_alignment_is_read_in_another_way(plans):
    optimizer, parameters = pair()
    gradients(parameters, 1)
    room = torch.empty(parameters[0].numel() + 1)
    shifted = room[1:].view(parameters[0].shape)
    shifted.copy_(parameters[0].grad)
    parameters[0].grad = shifted
    optimizer.step()
    assert len(plans) == 2
    twin, others = pair()
    gradients(others, 1)
    by_stages(twin).step()
    close([x.detach() for x in parameters], [x.detach() for x in others])


def test_plans_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(gpu_step, "MOST_PLANS", 3)
    optimizer, parameters = pair()
    for step in range(1, 9):
        gradients(parameters, step)
        for k, p in enumerate(parameters):
            p.grad = None if (step >> k) & 1 else p.grad
        optimizer.step()
        assert len(optimizer.plans) <= 3


def left(optimizer, parameters) -> int:
    """How many tensors a step leaves to the stages, which run."""
    seen = []
    execute = optimizer.execute
    optimizer.execute = lambda updates: seen.extend(execute(updates)) or seen
    gradients(parameters, 0)
    optimizer.step()
    return len(seen)


@pytest.mark.parametrize("statistic", ["max", "min", "l1", "l2"])
def test_other_statistics_are_left_to_the_stages(statistic):
    optimizer, parameters = optimizer_over([LAYOUTS["rows"]], 0, reduce=statistic)
    assert left(optimizer, parameters) == 1


def test_other_dtypes_and_strides_are_left_to_the_stages():
    kinds = [torch.randn(4, 6).double(), torch.randn(6, 4).t(), torch.randn(4, 6)]
    optimizer = AdamW([nn.Parameter(x) for x in kinds], lr=1e-2)
    assert left(optimizer, optimizer.param_groups[0]["params"]) == 2


def test_momentum_and_coupled_decay_are_left_to_the_stages():
    p, q = (nn.Parameter(torch.randn(40).bfloat16()) for _ in range(2))
    assert left(SGD([p], lr=1e-2, momentum=0.9), [p]) == 1
    assert left(SGD([q], lr=1e-2, weight_decay=0.1), [q]) == 1


def test_a_moment_on_another_device_is_left_to_the_stages():
    optimizer, parameters = optimizer_over([LAYOUTS["rows"]], 0, device="meta")
    optimizer.prepare()
    p = parameters[0]
    state = {**optimizer.state[p], "exp_avg": torch.zeros(p.shape)}
    group = optimizer.param_groups[0]
    entry = (group, p, torch.empty_like(p), state, optimizer.scalars(group, 1), optimizer.layout(p))
    assert gpu_step.adam(optimizer, [entry]) == [entry]


@pytest.mark.parametrize("reason", ["switched off", "not installed", "cannot start"])
def test_without_kernels_the_stages_run_and_the_log_says_why(reason, monkeypatch, caplog):
    gpu_step.kernels.cache_clear()
    if reason == "switched off":
        monkeypatch.setenv("LOWMEM_KERNEL", "0")
    elif reason == "not installed":
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.delitem(sys.modules, "lowmem.optim.core.triton_kernels", raising=False)
        monkeypatch.delattr(sys.modules["lowmem.optim.core"], "triton_kernels", raising=False)
    else:
        from lowmem.optim.core import triton_kernels

        class Broken:
            def __getitem__(self, grid):
                raise RuntimeError("Failed to find C compiler")

        monkeypatch.setattr(triton_kernels, "probe", Broken())
    try:
        with caplog.at_level(logging.DEBUG, logger="lowmem"):
            optimizer, parameters = optimizer_over([LAYOUTS["rows"]], 0)
            assert left(optimizer, parameters) == 1
        assert ("PyTorch code" in caplog.text) == (reason != "switched off")
    finally:
        gpu_step.kernels.cache_clear()
    twin, others = optimizer_over([LAYOUTS["rows"]], 0)
    gradients(others, 0)
    by_stages(twin).step()
    assert torch.equal(parameters[0], others[0])


def test_while_compiling_the_kernels_stay_out():
    model = zoo.net()
    optimizer = AdamMini(model, lr=1e-2, compile=True)
    assert started(lambda: optimizer.execute([(None,) * 6])) == []


def launches_of(build, **settings):
    """Kernels of one step of a real model, from its tables on meta tensors."""
    with torch.device("meta"):
        model = build()
    with pytest.MonkeyPatch.context() as patch:
        for name, size in dict(TILE=2048, LONGEST=16384, DOWN=32, ACROSS=64, SETTLE=1024).items():
            patch.setattr(gpu_tables, name, size)
        optimizer = AdamMini(model, lr=1e-3, **settings)
        tensors = [
            gpu_tables.Tensors(
                i, 0, p, p, torch.empty(optimizer.blocks(p).count, device="meta"), optimizer.layout(p), True
            )
            for i, p in enumerate(model.parameters())
        ]
        return [launch.kernel for launch in gpu_tables.plan(tensors, torch.device("meta")).launches]


@pytest.mark.parametrize(
    ("most", "build"),
    [
        (6, lambda: llama.build(n_layer=12, n_head=12, n_embd=768, n_hidden=2048, vocab_size=32000, block_size=1024)),
        (6, lambda: llama.build("llama2-7b")),
        (8, lambda: gpt2.build("125m")),
    ],
    ids=["llama 134M", "llama 7B", "gpt2 125M"],
)
def test_a_step_of_a_real_model_takes_a_handful_of_launches(most, build):
    found = launches_of(build)
    assert {"short"} < set(found) and len(found) <= most, found


def test_one_upload_a_step(monkeypatch):
    uploads = []
    upload = gpu_step.upload
    monkeypatch.setattr(gpu_step, "upload", lambda *given: uploads.append(given) or upload(*given))
    optimizer, parameters = pair()
    uploads.clear()
    gradients(parameters, 1)
    optimizer.step()
    assert len(uploads) == 1
