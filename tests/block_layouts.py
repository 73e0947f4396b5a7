"""Block layouts of every kind over parameters of their own, for tests that hold a fast way beside the stages."""

import torch
from hypothesis import strategies as st
from torch import nn

from lowmem.blocks import ParamBlocks, Partition, along, coordinates, one_block
from lowmem.optim import AdamMini

SETTINGS = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)


def optimizer_over(layouts: list[ParamBlocks], seed: int, dtype=torch.float32, device="cpu", rule=AdamMini, **settings):
    """AdamMini, or another rule, with these block layouts over fresh parameters of their shapes."""
    torch.manual_seed(seed)
    parameters = {blocks.name: nn.Parameter(torch.randn(blocks.shape).to(device, dtype)) for blocks in layouts}
    entries = {blocks.name: (blocks, parameters[blocks.name]) for blocks in layouts}
    return rule(Partition(entries, {}, None), **{**SETTINGS, **settings}), list(parameters.values())


def run(optimizer, parameters, steps=3):
    for step in range(steps):
        for k, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(97 * step + k)).to(p)
        optimizer.step()
    state = [value for p in parameters for key, value in optimizer.state[p].items() if key != "step"]
    return [p.detach().clone() for p in parameters] + [s.clone() for s in state]


@st.composite
def layout(draw):
    """Any layout that ParamBlocks can say: segments of several block sizes along any axis, merged axes, the two plain kinds."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    kind = draw(st.sampled_from(["axis", "axis", "axis", "axis", "tensor", "coordinate"]))
    name = f"p{draw(st.integers(0, 10**9))}"
    if kind == "tensor":
        return one_block(name, shape)
    if kind == "coordinate":
        return coordinates(name, shape)
    merge = draw(st.integers(1, len(shape)))
    merged = (torch.Size(shape[:merge]).numel(), *shape[merge:])
    axis = draw(st.integers(0, len(merged) - 1))
    segments, start = [], 0
    while start < merged[axis]:
        size = draw(st.integers(1, merged[axis] - start))
        count = draw(st.integers(1, (merged[axis] - start) // size))
        segments.append((start, start + count * size, size))
        start += count * size
    return along(name, shape, "mixed", segments, axis, merge)


LARGE = [
    along("rows", (700, 600), "neuron", ((0, 700, 1),)),
    along("heads", (512, 300), "head", ((0, 512, 64),)),
    along("columns", (300, 1100), "neuron", ((0, 1100, 1),), axis=1),
    along("fused", (200, 900), "mixed", ((0, 300, 50), (300, 600, 50), (600, 900, 1)), axis=1),
    one_block("norm", (70_001,)),
    coordinates("bias", (70_001,)),
    along("filters", (30, 20, 3, 3), "neuron", ((0, 20, 4),), axis=1),
]
