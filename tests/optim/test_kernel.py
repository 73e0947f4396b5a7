"""The C kernel: same numbers as the PyTorch path, same bits for any number of threads and any variant, no memory touched
that a tensor does not own."""

import os
import time

import pytest
import torch
from block_layouts import LARGE, SETTINGS, layout, optimizer_over, run
from compiler import needs_compiler, without_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowmem.blocks import Partition, along
from lowmem.optim import AdamMini, AdamW, Lion, adamw
from lowmem.optim.adamw import in_one_kernel
from lowmem.optim.core import cpu_kernel, kernel_build
from lowmem.optim.core.rule import Update


@needs_compiler
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(layout(), min_size=1, max_size=4, unique_by=lambda b: b.name), st.integers(0, 1000))
def test_it_equals_the_pytorch_path_for_any_block_layout(layouts, seed):
    in_c = run(*optimizer_over(layouts, seed))
    with pytest.MonkeyPatch.context() as patch:
        without_kernel(patch)
        in_torch = run(*optimizer_over(layouts, seed))
    for a, b in zip(in_c, in_torch, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


@needs_compiler
def test_it_equals_the_pytorch_path_at_sizes_of_many_chunks(monkeypatch):
    in_c = run(*optimizer_over(LARGE, 0))
    without_kernel(monkeypatch)
    in_torch = run(*optimizer_over(LARGE, 0))
    for a, b in zip(in_c, in_torch, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-6, atol=5e-7)


@needs_compiler
def test_any_number_of_threads_gives_the_same_bits():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(*optimizer_over(LARGE, 0), steps=2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def run_unshared(optimizer_class, steps=3, **settings):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((300, 700), (5,), (3, 4, 5), (300_001,))]
    return run(optimizer_class(parameters, lr=1e-2, weight_decay=0.1, **settings), parameters, steps)


def run_all():
    coded = run(*optimizer_over(LARGE, 0, state_dtype="int8")) + run_unshared(AdamW, state_dtype="int8")
    return run(*optimizer_over(LARGE, 0)) + run_unshared(AdamW) + run_unshared(Lion) + coded


@needs_compiler
@pytest.mark.parametrize("variant", range(1, len(kernel_build.VARIANTS)), ids=lambda k: kernel_build.VARIANTS[k])
def test_every_variant_gives_the_bits_of_the_plain_loops(variant, monkeypatch):
    results = []
    for chosen in (0, variant):
        built = cpu_kernel.library()._replace(blocks=chosen, elements=chosen)
        monkeypatch.setattr(cpu_kernel, "library", lambda built=built: built)
        results.append(run_all())
        monkeypatch.undo()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_compiler
def test_a_build_without_vector_units_gives_the_same_bits(tmp_path, monkeypatch):
    results = [run_all()]
    monkeypatch.setattr(kernel_build, "TARGETS", ("-O1",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = kernel_build.load()
    assert list(tmp_path.rglob("*.so"))
    monkeypatch.setattr(cpu_kernel, "library", lambda: built)
    results.append(run_all())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_compiler
@pytest.mark.parametrize("shape", [(2, 4096), (64, 128), (4096, 2)])
@pytest.mark.parametrize("axis", [0, 1])
def test_large_finite_gradients_do_not_overflow_a_block(shape, axis):
    """The sum of squares stops where fp32 ends, nearly."""
    blocks = along("p", shape, "neuron", ((0, shape[axis], 1),), axis=axis)
    p = nn.Parameter(torch.zeros(shape))
    optimizer = AdamMini(Partition({"p": (blocks, p)}, {}, None), lr=1.0, betas=(0.0, 0.0))
    p.grad = torch.full(shape, 1e17)
    p.grad[0, 0] = 3e19 if blocks.numel // shape[axis] > 2 else 1e19
    optimizer.step()
    wanted = p.grad.double().square().sum(1 - axis).clamp(max=1.8e19**2) / shape[1 - axis]
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"].double(), wanted, rtol=1e-6, atol=0)
    assert bool(p.isfinite().all())


@needs_compiler
@pytest.mark.parametrize("optimizer_class", [AdamW, Lion])
def test_a_rule_of_elements_equals_its_pytorch_path(optimizer_class, monkeypatch):
    in_c = run_unshared(optimizer_class)
    without_kernel(monkeypatch)
    for a, b in zip(in_c, run_unshared(optimizer_class), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


@needs_compiler
def test_lion_moves_nothing_where_the_direction_is_zero_or_nan(monkeypatch):
    def train():
        p = nn.Parameter(torch.ones(300))
        optimizer = Lion([p], lr=0.5)
        p.grad = torch.tensor([0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf")]).repeat(50)
        optimizer.step()
        return p.detach(), optimizer.state[p]["exp_avg"]

    in_c = train()
    without_kernel(monkeypatch)
    for a, b in zip(in_c, train(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=0, equal_nan=True)
    assert in_c[0][:3].tolist() == [1.0, 0.5, 1.5]


def test_the_kernel_for_gpus_equals_the_pytorch_path_and_leaves_what_rounds_otherwise(monkeypatch):
    """torch's fused AdamW also exists for CPUs, where it can be tried without a GPU."""
    monkeypatch.setattr(adamw, "ON", ("cpu",))

    def train(fast):
        torch.manual_seed(0)
        kinds = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.bfloat16, torch.bfloat16)
        parameters = [nn.Parameter(torch.randn(30, 7).to(kind)) for kind in kinds]
        groups = [
            {"params": parameters[:1], "lr": torch.tensor(0.02)},
            {"params": parameters[1:4], "weight_decay": 0.0},
            {"params": parameters[4:5], "rounding": "stochastic"},
            {"params": parameters[5:], "state_dtype": torch.float32},
        ]
        optimizer, left = AdamW(groups, **SETTINGS), []
        optimizer.ways_on_cpu = (lambda *given: left.append(in_one_kernel(*given)) or left[-1],) if fast else ()
        return run(optimizer, parameters), [len(updates) for updates in left]

    (plain, _), (fused, left) = train(fast=False), train(fast=True)
    assert left and set(left) == {2}, "stochastic rounding and moments of another type went the general way"
    unit = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=unit[a.dtype], atol=2e-7)


@needs_compiler
def test_it_takes_contiguous_fp32_only_and_leaves_the_rest():
    parameters = [
        nn.Parameter(torch.ones(4, 6)),
        nn.Parameter(torch.ones(6, 4).t()),
        nn.Parameter(torch.ones(4, 6, dtype=torch.bfloat16)),
        nn.Parameter(torch.ones(4, 6, dtype=torch.float64)),
    ]
    optimizer, left = AdamW(parameters, lr=0.1, weight_decay=0.0), []
    execute = optimizer.execute
    optimizer.execute = lambda updates: left.extend(execute(updates)) or left
    for p in parameters:
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    assert [update.param is p for update, p in zip(left, parameters[1:], strict=True)] == [True] * 3
    assert all(torch.allclose(p.double(), torch.tensor(0.9, dtype=torch.float64), atol=4e-3) for p in parameters)


@needs_compiler
def test_unaligned_storage_is_stepped_in_place():
    """Views into one buffer, as flat shards are, at offsets that no vector load is aligned to."""
    torch.manual_seed(0)
    buffer = torch.randn(1000)
    p, q = nn.Parameter(buffer[1:334]), nn.Parameter(buffer[1:334].clone())
    margin = buffer[0].item(), buffer[334].item()
    a, b = AdamW([p], **SETTINGS), AdamW([q], **SETTINGS)
    for optimizer, x in ((a, p), (b, q)):
        x.grad = torch.linspace(-1, 1, 1000)[3:336]
        optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert (buffer[0].item(), buffer[334].item()) == margin


def halved(t):
    """A tensor's numbers in 16 bits, at the place where they were in fp32."""
    values = t.detach().to(torch.bfloat16)
    place = torch.empty(0, dtype=torch.bfloat16).set_(t.untyped_storage(), 0, t.shape, t.stride())
    return place.copy_(values)


def cast_moment(optimizer, p, key):
    optimizer.state[p][key] = halved(optimizer.state[p][key])


def cast_weight(optimizer, p):
    if hasattr(p, "grad_dtype"):  # without it, as in PyTorch 2.6, a gradient has the weight's
        p.grad_dtype = torch.float32
    p.data = halved(p.data)


def turn_weight(optimizer, p):
    p.data = p.data.as_strided(p.shape, (1, len(p)))


def turn_moment(optimizer, p, key):
    moment = optimizer.state[p][key]
    optimizer.state[p][key] = moment.as_strided(moment.shape, (1, len(moment)))


def move_moment(optimizer, p, key):
    optimizer.state[p][key] = optimizer.state[p][key].clone()


CHANGES = {
    "weights cast in place": cast_weight,
    "weights laid out anew": turn_weight,
    "first moment cast in place": lambda o, p: cast_moment(o, p, "exp_avg"),
    "second moment cast in place": lambda o, p: cast_moment(o, p, "exp_avg_sq"),
    "first moment laid out anew": lambda o, p: turn_moment(o, p, "exp_avg"),
    "first moment moved": lambda o, p: move_moment(o, p, "exp_avg"),
    "second moment moved": lambda o, p: move_moment(o, p, "exp_avg_sq"),
    "weights moved": lambda o, p: setattr(p, "data", p.data.clone()),
}


@needs_compiler
@pytest.mark.parametrize(
    ("optimizer_class", "change"),
    [(c, change) for c in (AdamW, AdamMini, Lion) for change in CHANGES if c is not Lion or "second" not in change],
)
def test_what_a_tool_did_between_steps_is_noticed_and_steps_as_in_pytorch(change, optimizer_class, monkeypatch):
    def train():
        torch.manual_seed(0)
        model = nn.Linear(24, 16, bias=False)
        p, optimizer = model.weight, optimizer_class(model, lr=1e-2, weight_decay=0.1)
        for step in range(6):
            dtype = getattr(p, "grad_dtype", p.dtype)
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(dtype)
            optimizer.step()
            if step == 2:
                CHANGES[change](optimizer, p)
        return p.detach().float(), *(value.float() for key, value in optimizer.state[p].items() if key != "step")

    in_c = train()
    without_kernel(monkeypatch)
    for a, b in zip(in_c, train(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if "cast" in change else 2e-6, atol=2e-7)


@needs_compiler
@pytest.mark.parametrize("what", ["weights", "gradient", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("left", [0, 64])
def test_memory_that_was_given_back_is_not_touched(what, left):
    """As a sharding tool frees weights between steps: the tensor's shape stays, its memory does not."""
    p = nn.Parameter(torch.randn(16, 24))
    optimizer = AdamW([p], **SETTINGS)
    p.grad = torch.randn(16, 24)
    optimizer.step()
    tensor = {"weights": p.data, "gradient": p.grad, **optimizer.state[p]}[what]
    h = {**optimizer.scalars(SETTINGS, 2), "factor": 1.0}
    updates = [Update(optimizer.param_groups[0], p, p.grad, optimizer.state[p], h, optimizer.layout(p))]
    assert optimizer.execute(updates) == []
    tensor.untyped_storage().resize_(left)
    assert optimizer.execute(updates) == updates


@needs_compiler
def test_moments_that_are_replaced_at_every_step_leave_nothing_behind():
    p = nn.Parameter(torch.randn(16, 24))
    optimizer, kept = AdamW([p], **SETTINGS), []
    for _ in range(100):
        p.grad = torch.randn(16, 24)
        optimizer.step()
        kept.append(optimizer.state[p]["exp_avg"])
        optimizer.state[p]["exp_avg"] = kept[-1].clone()
    assert len(optimizer._segments) < 30


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_compiler
def test_a_forked_process_steps_too(two_threads):
    p = nn.Parameter(torch.ones(cpu_kernel.THREADS_PAY_FROM))
    optimizer = AdamW([p], lr=0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    child = os.fork()
    if child == 0:
        optimizer.step()
        os._exit(0)
    deadline = 600
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        deadline -= 1
        if not deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the forked process waits for threads that it does not have")
        time.sleep(0.1)
