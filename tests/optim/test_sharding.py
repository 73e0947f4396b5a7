"""The same update however parameters are cut: geometry, and all rules on simulated ranks (no processes needed)."""

import functools
import math

import pytest
import torch
import zoo
from compiler import without_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import Bag, Ranks, axis_split, flat_split, grid_split, part_of

from lowmem import partition
from lowmem.blocks import ParamBlocks, along, coordinates, one_block
from lowmem.optim import Adafactor, AdamMini
from lowmem.optim.core.layout import layout
from lowmem.optim.core.rule import narrowed, view_of
from lowmem.optim.core.sharding import flat_boxes, shard_of

STEPS, TOLERANCE = 20, 1e-6
SHAPES = {
    "fused": (12, 5),
    "heads": (8, 3),
    "merged": (4, 6, 2),
    "columns": (5, 6),
    "outer": (3, 4, 2, 2),
    "rows": (7, 3),
    "experts": (3, 4, 6),
    "stacked heads": (2, 6, 5),
    "whole": (3, 5),
    "norm": (7,),
    "bias": (6,),
    "scale": (),
}
BLOCKS = {
    "fused": along("fused", (12, 5), "mixed", ((0, 4, 4), (4, 8, 2), (8, 12, 1))),
    "heads": along("heads", (8, 3), "head", ((0, 8, 4),)),
    "merged": along("merged", (4, 6, 2), "head", ((0, 24, 3),), merge=2),
    "columns": along("columns", (5, 6), "neuron", ((0, 6, 1),), axis=1),
    "outer": along("outer", (3, 4, 2, 2), "neuron", ((0, 4, 2),), axis=1),
    "rows": along("rows", (7, 3), "neuron", ((0, 7, 1),)),
    "experts": along("experts", (3, 4, 6), "neuron", ((0, 6, 1),), axis=1, stack=1),
    "stacked heads": along("stacked heads", (2, 6, 5), "head", ((0, 6, 3),), stack=1),
    "whole": one_block("whole", (3, 5)),
    "norm": one_block("norm", (7,)),
    "bias": coordinates("bias", (6,)),
    "scale": one_block("scale", ()),
}
TOTAL = sum(math.prod(shape) for shape in SHAPES.values())


def block_numbers(blocks: ParamBlocks) -> torch.Tensor:
    """Which block every element belongs to, by a definition that shares no code with the package."""
    if blocks.kind == "coordinate":
        return torch.arange(blocks.numel).view(blocks.shape)
    if blocks.stack:
        inside = block_numbers(
            ParamBlocks("", blocks.shape[1:], blocks.kind, 0, blocks.axis, blocks.segments, blocks.merge)
        )
        return torch.stack([inside + i * (int(inside.max()) + 1) for i in range(blocks.shape[0])])
    merged = (math.prod(blocks.shape[: blocks.merge]), *blocks.shape[blocks.merge :])
    found, first = torch.full(merged or (1,), -1), 0
    for start, stop, size in blocks.segments:
        for index in range(start, stop):
            found.select(blocks.axis, index).fill_(first + (index - start) // size)
        first += (stop - start) // size
    return found.view(blocks.shape)


@st.composite
def cut(draw):
    name = draw(st.sampled_from(sorted(SHAPES)))
    shape = SHAPES[name]
    a, b = sorted(draw(st.tuples(*[st.integers(0, math.prod(shape))] * 2)))
    return BLOCKS[name], a, b


@given(cut())
@settings(max_examples=120, deadline=None)
def test_boxes_of_a_flat_range_hold_exactly_its_elements_in_order(case):
    blocks, a, b = case
    boxes = flat_boxes(blocks.shape, a, b)
    elements = torch.arange(blocks.numel).view(blocks.shape)
    assert part_of(elements, boxes).tolist() == list(range(a, b))
    assert [box.offset for box in boxes] == [sum(x.numel for x in boxes[:i]) for i in range(len(boxes))]
    assert len(boxes) <= max(2 * len(blocks.shape) - 1, 1)


def check_layout(blocks: ParamBlocks, boxes) -> None:
    numbers = block_numbers(blocks)
    sizes = torch.bincount(numbers.reshape(-1), minlength=blocks.count)
    mine = part_of(numbers, boxes)
    held = torch.bincount(mine, minlength=blocks.count)
    lay = layout("blocks", blocks, boxes)
    seen = torch.zeros(len(mine))
    for piece in lay.pieces:
        view_of(seen, piece).add_(1)
        if blocks.kind == "coordinate":
            continue
        x = view_of(mine, piece)  # (outer, count, run)
        names = narrowed(torch.arange(blocks.count).view(1, -1, 1), piece.ranges)
        assert (x == names).all()  # a piece's columns are blocks, and its place in the frame is right
        assert piece.partial == (x.shape[0] * x.shape[2] != piece.size)
        assert (sizes[names.reshape(-1)] == piece.size).all()
    assert (seen == 1).all()  # every element is in one piece
    assert lay.held == len(mine)
    if bool(((held > 0) & (held < sizes)).any()):
        assert lay.partial
    shaped = layout("shaped", blocks, boxes)
    for piece in shaped.pieces:
        for axis in range(len(blocks.shape)):
            index = torch.arange(blocks.shape[axis]).view([-1 if i == axis else 1 for i in range(len(blocks.shape))])
            full = index.expand(blocks.shape).contiguous()
            assert (view_of(part_of(full, boxes), piece) == narrowed(index, piece.ranges)).all()


@given(cut())
@settings(max_examples=120, deadline=None)
def test_pieces_of_a_flat_range_are_blocks_or_parts_of_blocks(case):
    blocks, a, b = case
    check_layout(blocks, flat_boxes(blocks.shape, a, b))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_pieces_of_a_chunk_along_any_axis_are_blocks_or_parts_of_blocks(name, axis, ranks):
    for held in axis_split(SHAPES, axis, ranks):
        check_layout(BLOCKS[name], held[name])


def test_a_whole_tensor_is_never_partial_and_pieces_are_views():
    for name, blocks in BLOCKS.items():
        for form in ("flat", "shaped", "blocks"):
            lay = layout(form, blocks)
            assert not lay.partial
            x = torch.zeros(SHAPES[name])
            assert all(view_of(x, piece).data_ptr() >= x.data_ptr() for piece in lay.pieces)
            for piece in lay.pieces:
                view_of(x, piece).add_(1)
            assert (x == 1).all()


def test_a_plain_tensor_has_no_shard():
    assert shard_of(torch.zeros(3)) is None


# -- all rules on simulated ranks ------------------------------------------------------------------------------------------

RULES = dict(zoo.SETTINGS) | {f"adam_mini-{r}": (AdamMini, dict(lr=1e-2, reduce=r)) for r in ("min", "l2")}
RULES["adafactor-decay"] = (Adafactor, dict(lr=1e-2, weight_decay=0.1, relative_step="capped"))
RULES["sm3-forgetful"] = (zoo.SETTINGS["sm3"][0], dict(lr=1e-2, beta=0.9, weight_decay=0.1))
SPLITS = {
    "one": lambda: flat_split(SHAPES, []),
    "rows-2": lambda: axis_split(SHAPES, 0, 2),
    "rows-3": lambda: axis_split(SHAPES, 0, 3),
    "rows-4": lambda: axis_split(SHAPES, 0, 4),
    "columns-4": lambda: axis_split(SHAPES, 1, 4),
    "grid": lambda: grid_split(SHAPES, 2, 2),
    "flat": lambda: flat_split(SHAPES, [29, 101]),
    "flat-empty": lambda: flat_split(SHAPES, [0, 7, TOTAL]),
}


def build(rule: str):
    cls, keywords = RULES[rule]

    def make(model):
        if cls is AdamMini:
            return AdamMini(partition(model, overrides=dict(BLOCKS)), **keywords)
        return cls(model, **keywords)

    return make


def gradients(steps: int, dtype: torch.dtype):
    """The gradients of every step; the first draw is the weights."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps + 1):
        yield {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}


@functools.cache
def alone(rule: str, steps: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Where one process ends."""
    draws = gradients(steps, dtype)
    model = Bag(next(draws))
    whole = build(rule)(model)
    for step in draws:
        for n, p in model.named_parameters():
            p.grad = step[n]
        whole.step()
    return {n: p.detach() for n, p in model.named_parameters()}


def compare(rule: str, split, steps: int = STEPS, dtype=torch.float32) -> tuple[float, Ranks]:
    draws = gradients(steps, dtype)
    ranks = Ranks(build(rule), next(draws), split)
    for step in draws:
        ranks.step(step)
    found, expected = ranks.full(), alone(rule, steps, dtype)
    return max(float((expected[n] - found[n]).abs().max()) for n in SHAPES), ranks


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule not in ("adafactor", "sgd")]
)  # variants of these do more
def test_the_update_is_the_same_on_any_number_of_ranks(rule, split):
    worst, _ = compare(rule, SPLITS[split]())
    assert worst <= TOLERANCE  # nan would fail


@given(st.lists(st.integers(0, TOTAL), max_size=3), st.sampled_from(sorted(RULES)))
@settings(max_examples=30, deadline=None)
def test_the_update_is_the_same_for_flat_slices_anywhere(cuts, rule):
    worst, _ = compare(rule, flat_split(SHAPES, cuts), steps=4)
    assert worst <= TOLERANCE


@pytest.mark.parametrize("rule, stages", [("adam_mini", 1), ("adafactor", 2), ("came", 3), ("sm3", 1), ("lamb", 1)])
def test_sums_are_bundled_into_one_reduction_per_stage(rule, stages):
    _, ranks = compare(rule, SPLITS["flat"](), steps=5)
    assert ranks.reductions == 5 * stages


@pytest.mark.parametrize("rule", ["adamw", "sgd", "sgd-nesterov", "lion"])
def test_element_wise_rules_never_reduce(rule):
    _, ranks = compare(rule, SPLITS["flat"](), steps=5)
    assert ranks.reductions == 0


def test_adam_mini_reduces_nothing_when_no_block_is_cut():
    shapes = {"heads": (8, 3), "rows": (7, 3), "bias": (6,)}
    at_block_ends = [12, 24 + 9]  # after the first head of four rows, after three rows of the second matrix
    generator = torch.Generator().manual_seed(5)
    weights = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}

    def make(model):
        return AdamMini(partition(model, overrides={n: BLOCKS[n] for n in shapes}), lr=1e-2)

    model = Bag(weights)
    whole, ranks = make(model), Ranks(make, weights, flat_split(shapes, at_block_ends))
    for _ in range(5):
        gradients = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
        for n, p in model.named_parameters():
            p.grad = gradients[n].clone()
        whole.step()
        ranks.step(gradients)
    assert ranks.reductions == 0
    found = ranks.full()
    assert max(float((p.detach() - found[n]).abs().max()) for n, p in model.named_parameters()) <= TOLERANCE


@pytest.mark.parametrize("rule", ["adam_mini", "adafactor", "came", "sm3", "lamb"])
def test_16_bit_parts_stay_within_rounding_of_the_whole(rule):
    worst, _ = compare(rule, SPLITS["flat"](), steps=3, dtype=torch.bfloat16)
    assert worst <= 2**-6  # a few units in the last place of numbers near 1


def test_eager_code_without_the_c_kernel_gives_the_same(monkeypatch):
    alone("adam_mini", STEPS, torch.float32)  # with the kernel, where there is one
    without_kernel(monkeypatch)
    for split in ("rows-3", "flat"):
        worst, _ = compare("adam_mini", SPLITS[split]())
        assert worst <= TOLERANCE
