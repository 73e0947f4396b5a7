"""The Triton kernels on a GPU: the numbers of the stages, whatever the layout, dtype, stream, device or way of running."""

import math

import pytest
import torch
import zoo
from block_layouts import optimizer_over
from kernel_cases import LAYOUTS, both, by_kernels, by_stages, close, gradients, started
from torch import nn

from lowmem.blocks import along, one_block
from lowmem.models import gpt2, llama
from lowmem.optim import SGD, AdamMini, AdamW, FusedBackward, Lomo
from lowmem.optim.core import gpu_step

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LARGE = [
    along("rows", (700, 4096), "neuron", ((0, 700, 1),)),
    along("odd", (300, 4099), "neuron", ((0, 300, 1),)),
    along("longest", (40, 11008), "neuron", ((0, 40, 1),)),
    along("heads", (512, 4096), "head", ((0, 512, 128),)),
    along("columns", (300, 1100), "neuron", ((0, 1100, 1),), axis=1),
    one_block("whole", (1_000_003,)),
]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def test_the_kernels_start_here():
    assert gpu_step.kernels(torch.device("cuda", torch.cuda.current_device())) is not None


@dtypes
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_kind_of_block_gives_the_numbers_of_the_stages(name, dtype):
    close(*both([LAYOUTS[name]], "cuda", dtype=dtype))


@dtypes
@pytest.mark.parametrize("blocks", LARGE, ids=lambda blocks: blocks.name)
def test_large_blocks_give_the_numbers_of_the_stages(blocks, dtype):
    close(*both([blocks], "cuda", steps=2, dtype=dtype))


@pytest.mark.parametrize(
    ("build", "most"),
    [
        (lambda: llama.build(n_layer=4, n_head=4, n_embd=256, n_hidden=688, vocab_size=512, block_size=64), 6),
        (lambda: gpt2.build(n_layer=4, n_head=4, n_embd=256, vocab_size=513, block_size=64), 8),
    ],
    ids=["llama", "gpt2"],
)
def test_a_model_takes_a_handful_of_launches(build, most):
    def train(way):
        torch.manual_seed(0)
        model = build().cuda()
        optimizer = way(AdamMini(model, lr=1e-2, weight_decay=0.1))
        for step in range(3):
            gradients(model.parameters(), step)
            names = started(optimizer.step)
        return [p.detach() for p in model.parameters()], names

    found, names = train(by_kernels)
    close(found, train(by_stages)[0])
    assert 0 < len(names) <= most


@dtypes
def test_adamw_and_descent_in_every_dtype(dtype):
    close(*both([LAYOUTS["coordinates"]], "cuda", dtype=dtype, rule=AdamW, state_dtype=torch.float32))

    def train(way):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(1001).to("cuda", dtype))
        optimizer = way(SGD([p], lr=1e-2, weight_decay=0.1, decoupled=True))
        for step in range(3):
            gradients([p], step)
            optimizer.step()
        return [p.detach()]

    close(train(by_kernels), train(by_stages))


def test_16_bit_descent_without_decay_computes_in_fp32_and_rounds_once():
    for dtype in DTYPES[1:]:
        p = torch.randn(1 << 18, device="cuda").to(dtype)
        g = torch.randn(1 << 18, device="cuda").to(dtype)
        q = nn.Parameter(p.clone())
        optimizer = by_kernels(SGD([q], lr=0.37))
        q.grad = g
        optimizer.step()
        assert torch.equal(q, p.float().add_(g.float(), alpha=-0.37).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_stochastic_rounding_is_right_on_average(dtype):
    unit, n = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype], 1 << 20
    p = nn.Parameter(torch.ones(n, device="cuda", dtype=dtype))
    p.grad = torch.ones_like(p)
    by_kernels(SGD([p], lr=unit / 4, rounding="stochastic")).step()
    share = (p != 1).float().mean().item()
    assert set(p.unique().tolist()) == {1.0 - unit, 1.0}
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)


def test_views_at_odd_offsets_are_stepped_and_what_lies_beside_them_is_not():
    buffer = torch.randn(10_000, device="cuda")
    p, q = nn.Parameter(buffer[1:9334]), nn.Parameter(buffer[1:9334].clone())
    margin = buffer[0].item(), buffer[9334].item()
    for x, way in ((p, by_kernels), (q, by_stages)):
        optimizer = way(AdamMini([("p", x)], lr=1e-2))
        x.grad = torch.linspace(-1, 1, 10_000, device="cuda")[3:9336]
        optimizer.step()
    close([p.detach()], [q.detach()])
    assert (buffer[0].item(), buffer[9334].item()) == margin


def test_on_a_stream_of_its_own():
    def train(stream):
        optimizer, parameters = optimizer_over([LAYOUTS["rows"], LAYOUTS["long heads"]], 0, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for step in range(20):
                gradients(parameters, step)
                optimizer.step()
        torch.cuda.synchronize()
        return [p.detach() for p in parameters]

    close(train(torch.cuda.Stream()), train(torch.cuda.current_stream()))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_parameters_on_two_gpus():
    close(*both([LAYOUTS["rows"]], "cuda:1"))


@pytest.mark.parametrize("clip", [None, 0.05])
def test_inside_backward_with_the_clip_coefficient(clip):
    def train(build, way):
        model = zoo.net().cuda()
        optimizer = build(model)
        way(optimizer.inner)
        for step in range(3):
            optimizer.backward(model(zoo.batch(step).cuda()))
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    for build in (
        lambda m: FusedBackward(AdamMini(m, lr=1e-2), max_grad_norm=clip, loss_scale=1024.0),
        lambda m: Lomo(m, lr=1e-2, max_grad_norm=clip, weight_decay=0.1),
    ):
        close(train(build, by_kernels), train(build, by_stages))


@pytest.mark.parametrize("build", [lambda p: AdamMini([("p", p)], lr=0.1), lambda p: SGD([p], lr=0.1)])
def test_a_step_inside_a_cuda_graph_is_refused(build):
    p = nn.Parameter(torch.ones(64, device="cuda"))
    optimizer = build(p)
    p.grad = torch.ones_like(p)
    optimizer.step()
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match="capture forward and backward only"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()


@pytest.mark.parametrize("rule", ["AdamMini", "AdamW", "Lion", "Adafactor", "SGD"])
def test_no_step_waits_for_the_gpu(rule):
    from lowmem import optim

    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).cuda()
    optimizer = getattr(optim, rule)(model, lr=1e-3)
    for step in range(2):
        gradients(model.parameters(), step)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step makes state and tables
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("rule", ["AdamMini", "AdamW", "Lion", "Adafactor", "SGD"])
def test_a_grad_scaler_does_not_wait_and_an_overflow_leaves_no_trace(rule):
    from lowmem import optim

    def train(told):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).cuda()
        optimizer, scaler = getattr(optim, rule)(model, lr=1e-3), torch.amp.GradScaler(init_scale=1024.0)
        optimizer.skips_on_device = told
        for step in range(4):
            optimizer.zero_grad()
            torch.manual_seed(step)
            scaler.scale(model(torch.randn(8, 64, device="cuda")).square().mean()).backward()
            if step in (0, 2):
                model[0].weight.grad[3, 5] = torch.inf
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if told and step > 1 else "default")
            try:
                scaler.step(optimizer)
                scaler.update()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        steps = {state["step"].item() for state in optimizer.state_dict()["state"].values()}
        return [p.detach() for p in model.parameters()], steps

    found, steps = train(True)
    close(found, train(False)[0])
    assert steps == {2.0}


def test_fully_shard_on_one_rank(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:

        def train(way, sharded):
            torch.manual_seed(0)
            model = llama.build(n_layer=2, n_head=2, n_embd=32, n_hidden=48, vocab_size=64, block_size=16).cuda()
            if sharded:
                fully_shard(model)
            optimizer = way(AdamMini(model, lr=1e-2))
            tokens = torch.arange(32, device="cuda").view(2, 16)
            for _ in range(3):
                model(tokens).float().square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            return [p.full_tensor() if sharded else p.detach() for p in model.parameters()]

        for a, b in zip(train(by_kernels, True), train(by_stages, False), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # the two models multiply in another order
    finally:
        dist.destroy_process_group()
