"""Stochastic rounding in the kernels: neighbours only, right on average, and the same bits however a parameter is cut."""

import math

import pytest
import torch
from block_layouts import optimizer_over
from kernel_cases import LAYOUTS, by_kernels, by_stages, gradients
from torch import nn

from lowmem.blocks import Partition, along, coordinates
from lowmem.optim import SGD, AdamMini, AdamW, Lomo
from lowmem.optim.core import gpu_step
from lowmem.optim.core.gpu_tables import numbering
from lowmem.optim.core.layout import layout
from lowmem.optim.core.sharding import Box, Shard, flat_boxes, flat_part

HALVES = [torch.bfloat16, torch.float16]


def step(name, dtype, way, seed, **settings):
    """[weights, first moment] after one step from the same start, as fp32."""
    optimizer, parameters = optimizer_over([LAYOUTS[name]], 0, dtype=dtype, **settings)
    gradients(parameters, 0)
    torch.manual_seed(seed)
    way(optimizer).step()
    return [parameters[0].detach().float(), optimizer.state[parameters[0]]["exp_avg"].float()]


def exact(name, dtype):
    """The same step in fp32 from the same 16-bit start."""
    optimizer, parameters = optimizer_over([LAYOUTS[name]], 0, dtype=dtype)
    gradients(parameters, 0)
    start, gradient = parameters[0].detach().float(), parameters[0].grad.float()
    optimizer, parameters = optimizer_over([LAYOUTS[name]], 0)
    parameters[0].data.copy_(start)
    parameters[0].grad = gradient
    by_stages(optimizer).step()
    return [parameters[0].detach(), optimizer.state[parameters[0]]["exp_avg"]]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["rows", "long heads", "columns", "coordinates"])
def test_results_are_neighbours_of_the_exact_ones_and_right_on_average(name, dtype):
    draws, unit = 16, {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    truth = exact(name, dtype)
    sums = [torch.zeros_like(x) for x in truth]
    for seed in range(draws):
        for total, found, x in zip(sums, step(name, dtype, by_kernels, seed, rounding="stochastic"), truth):
            spacing = torch.clamp(torch.exp2(torch.floor(torch.log2(x.abs()))) * unit, min=2.0**-24)
            assert ((found - x).abs() <= spacing * 1.001).all()
            total += (found - x) / spacing
    for total in sums:  # each error has variance of at most a quarter
        z = total.sum() / (0.5 * math.sqrt(draws * total.numel()))
        assert z.abs() < 3.5, z
        assert total.abs().max() > 0


def whole_and_parts(boxes, rule, shape, dtype=torch.bfloat16, **settings):
    """(weights of one step on the whole parameter, those of the same step on each of its parts, as flat tensors)."""
    blocks = settings.pop("blocks", None) or coordinates("weight", shape)

    def build():
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(shape).to(dtype))
        g = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)
        optimizer = rule(Partition({"weight": (blocks, p)}, {}, None), lr=0.1, rounding="stochastic", **settings)
        return optimizer, p, g

    optimizer, p, g = build()
    p.grad = g
    torch.manual_seed(11)
    by_kernels(optimizer).step()
    parts = []
    for part in boxes:
        optimizer, q, g = build()
        shard = Shard(shape, part)
        held = nn.Parameter(flat_part(q.detach(), shard))
        optimizer.replace_params({q: (held, shard)})
        held.grad = flat_part(g, shard)
        torch.manual_seed(11)
        by_kernels(optimizer).step()
        parts.append((flat_part(p.detach(), shard), held.detach()))
    return parts


ONE_BOX = [
    (Box((0, 0), (4, 30)),),
    (Box((4, 0), (6, 30)),),
    (Box((0, 7), (10, 11)),),
    (Box((3, 12), (5, 18)),),
    (Box((9, 29), (1, 1)),),
]


@pytest.mark.parametrize("rule", [AdamW, SGD, AdamMini])
def test_random_bits_do_not_depend_on_how_a_parameter_is_cut(rule):
    flat = [flat_boxes((10, 30), a, b) for a, b in ((0, 7), (7, 95), (95, 300), (13, 14))]
    for whole, part in whole_and_parts([*ONE_BOX, *flat], rule, (10, 30)):
        assert torch.equal(whole, part)


def test_random_bits_of_rows_and_of_an_inner_axis():
    rows = along("weight", (10, 30), "neuron", ((0, 10, 1),))
    parts = [(Box((2, 0), (5, 30)),), flat_boxes((10, 30), 60, 210)]
    for whole, part in whole_and_parts(parts, AdamMini, (10, 30), blocks=rows):
        assert torch.equal(whole, part)
    columns = along("weight", (12, 24), "neuron", ((0, 24, 1),), axis=1)
    for whole, part in whole_and_parts([(Box((0, 8), (12, 16)),)], AdamMini, (12, 24), blocks=columns):
        assert torch.equal(whole, part)
    for whole, part in whole_and_parts([(Box((1, 2, 0), (3, 3, 7)),)], AdamW, (4, 6, 7)):
        assert torch.equal(whole, part)


def test_elements_are_numbered_as_in_the_whole_parameter():
    shape = (4, 6, 5)
    numbers = torch.arange(120).view(shape)
    boxes = [Box((0, 0, 0), shape), Box((1, 0, 0), (2, 6, 5)), Box((1, 2, 0), (2, 3, 5)), Box((0, 0, 3), (4, 6, 2))]
    boxes += [Box((2, 1, 3), (1, 4, 2)), Box((3, 5, 4), (1, 1, 1)), Box((3, 2, 0), (1, 3, 5))]
    for box in boxes:
        base, chunk, stride = numbering(layout("flat", coordinates("x", shape), (box,)))
        inside = numbers[tuple(slice(a, a + n) for a, n in zip(box.start, box.lengths))].reshape(-1).tolist()
        assert [base + i // chunk * stride + i % chunk for i in range(box.numel)] == inside
    base, chunk, stride = numbering(layout("flat", coordinates("x", shape), flat_boxes(shape, 17, 93)))
    assert (base, chunk, stride) == (17, 76, 76)
    assert numbering(layout("flat", coordinates("x", shape), (Box((1, 1, 1), (2, 3, 2)),))) is None
    assert (
        numbering(layout("flat", coordinates("x", shape), (Box((0, 0, 0), (1, 1, 5)), Box((2, 0, 0), (1, 1, 5), 5))))
        is None
    )


def test_parts_that_cannot_be_numbered_go_through_the_stages():
    part = (Box((1, 1, 1), (2, 3, 2)),)
    with pytest.raises(AssertionError, match="went through the stages"):
        whole_and_parts([part], AdamW, (4, 6, 5))


def test_bits_follow_torchs_generator_and_differ_between_steps_and_parameters():
    first = step("rows", torch.bfloat16, by_kernels, 3, rounding="stochastic")
    again = step("rows", torch.bfloat16, by_kernels, 3, rounding="stochastic")
    other = step("rows", torch.bfloat16, by_kernels, 4, rounding="stochastic")
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    ones = [nn.Parameter(torch.full((64,), 1.0, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = by_kernels(SGD(ones, lr=2.0**-9, rounding="stochastic"))
    seen = []
    for _ in range(3):
        for p in ones:
            p.data.fill_(1.0)
            p.grad = torch.ones_like(p)
        optimizer.step()
        seen += [tuple(p.tolist()) for p in ones]
    assert len(set(seen)) == 6 and {x for values in seen for x in values} == {1.0, 1.0 - 2.0**-8}


def test_one_seed_serves_a_whole_backward_whatever_the_order_of_its_hooks(monkeypatch):
    drawn = []
    draw = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *given, **named: drawn.append(given) or draw(*given, **named))
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(torch.bfloat16)
    optimizer = Lomo(model, lr=1e-2, rounding="stochastic")
    by_kernels(optimizer.inner)
    for _ in range(3):
        optimizer.backward(model(torch.ones(2, 8, dtype=torch.bfloat16)).float().square().mean())
        optimizer.step()
    assert len(drawn) == 3


@pytest.mark.filterwarnings("ignore:AdamMini got parameters", "ignore:invalid value")
def test_infinite_and_nan_gradients_come_out_as_such():
    for dtype in (torch.float32, *HALVES):
        p = nn.Parameter(torch.ones(40, dtype=dtype))
        optimizer = by_kernels(AdamMini([p], lr=0.1, rounding="stochastic"))
        p.grad = torch.ones_like(p)
        p.grad[3] = torch.nan
        optimizer.step()
        assert p.isnan().all(), "one block: its rate is not a number"
        q = nn.Parameter(torch.ones(40, dtype=dtype))
        optimizer = by_kernels(SGD([q], lr=0.1, rounding="stochastic", weight_decay=0.1, decoupled=True))
        q.grad = torch.ones_like(q)
        q.grad[3], q.grad[5] = torch.nan, torch.inf
        optimizer.step()
        assert q[3].isnan() and q[5] == -torch.inf and q.isfinite().sum() == 38


def test_the_generator_is_left_alone_where_nothing_is_rounded_by_chance():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    step("rows", torch.float32, by_kernels, 0)
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())
    assert gpu_step.launched is None
