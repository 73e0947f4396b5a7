"""The accountant against the allocator, against full depth, and against what must hold whatever the numbers are."""

import dataclasses
import gc
import os
import subprocess
import sys

import pytest
import torch
from synthetic import ROOT

from lowmem.errors import Misuse
from lowmem.memory import accountant, hardware, measured_peak, target_model, throughput
from lowmem.memory.accountant import TrainingSetup, estimate_memory, trace
from lowmem.memory.operation_counts import OperationCounts, extrapolated
from lowmem.memory.tracker import Tracker
from lowmem.optim._factory import make

LLAMA = {
    "name": "llama",
    "n_layer": 5,
    "n_head": 2,
    "n_embd": 64,
    "n_hidden": 160,
    "vocab_size": 256,
    "block_size": 128,
}
GPT2 = {"name": "gpt2", "n_layer": 5, "n_head": 2, "n_embd": 64, "vocab_size": 512, "block_size": 128, "bias": True}
HERE = TrainingSetup(optimizer={"name": "adamw"}, batch=3, seq_len=64, precision="fp32", device="cpu")
THERE = TrainingSetup(optimizer={"name": "adamw"}, batch=2, seq_len=64)


def garbage(size: int) -> None:
    """Leave bytes that only the garbage collector can free."""
    cycle = [torch.zeros(size, dtype=torch.uint8)]
    cycle.append(cycle)


def of(cell: TrainingSetup, name: str, **changes) -> TrainingSetup:
    backward = {"backward": {}} if name.endswith("+backward") else {}
    return dataclasses.replace(cell, optimizer={"name": name.removesuffix("+backward"), **backward}, **changes)


@pytest.mark.parametrize("name", ["adamw", "lomo", "adam_mini+backward"])
def test_predicted_peak_is_the_allocators(name):
    cell = of(HERE, name)
    peak, _ = measured_peak.peak_bytes(target_model.find(LLAMA), cell)
    assert estimate_memory(target_model.find(LLAMA), cell).peak == pytest.approx(peak, rel=0.01)


def test_what_earlier_work_left_is_not_counted_when_it_is_freed_during_the_step():
    def leaves_garbage(target, cell, device):
        return lambda: garbage(1 << 24)

    def collects_it(target, cell, device):
        return lambda: (gc.collect(), torch.zeros(1 << 20, dtype=torch.uint8))[0]

    measured_peak.peak_bytes(None, HERE, make_step=leaves_garbage)
    peak, _ = measured_peak.peak_bytes(None, HERE, make_step=collects_it)
    assert peak == 1 << 20


@pytest.mark.parametrize("changes", [{"checkpointing": True}, {"batch": 1, "seq_len": 128}])
def test_predicted_peak_is_the_allocators_for_other_models_and_settings(changes):
    cell = of(HERE, "adafactor", **changes)
    peak, _ = measured_peak.peak_bytes(target_model.find(GPT2), cell)
    assert estimate_memory(target_model.find(GPT2), cell).peak == pytest.approx(peak, rel=0.01)


def test_two_shallow_models_give_the_deep_one():
    deep = target_model.find({**LLAMA, "n_layer": 9})
    cell = of(THERE, "adam_mini")
    assert estimate_memory(deep, cell).peak == estimate_memory(deep, cell, full_depth=True).peak


def test_four_and_five_layers_give_the_deep_one_under_fully_shard():
    deep = target_model.find({**LLAMA, "n_layer": 9})
    cell = of(THERE, "adam_mini", gpus=2, precision="mixed")
    few, full = estimate_memory(deep, cell), estimate_memory(deep, cell, full_depth=True)
    assert few.depths == (4, 5) and full.depths == (9,)
    assert few.peak == full.peak
    assert few.work.operations() == pytest.approx(full.work.operations())


def update_of(name: str, precision: str = "bf16", **settings):
    """(bytes per element, launches) of the update on a GPU of a model with long heads and rows."""
    model = target_model.find({**LLAMA, "n_embd": 256, "n_hidden": 320, "n_layer": 2})
    cell = TrainingSetup(optimizer={"name": name, **settings}, seq_len=16, precision=precision)
    found, stage = (
        estimate_memory(model, cell, full_depth=True),
        "backward" if "backward" in settings or name == "lomo" else "update",
    )
    elements = found.parts["parameters"] / (2 if precision == "bf16" else 4)
    streams = {key: n for key, n in found.work.items() if key[:2] == (stage, "stream")}
    return sum(key[2] * n for key, n in streams.items()) / elements, sum(streams.values())


@pytest.mark.parametrize(
    ("name", "precision", "moved", "launches"),
    [
        ("adamw", "fp32", 28, 1),
        ("adamw", "bf16", 14, 1),
        ("adam_mini", "fp32", 20.6, 4),  # queries and keys, 4 of 22 tensors, are read twice
        ("adam_mini", "bf16", 10.4, 4),
        ("sgd", "fp32", 12, 1),
        ("sgd", "bf16", 6, 1),
    ],
)
def test_kernels_of_a_gpu_move_each_tensor_once_in_a_few_launches_and_without_copies(name, precision, moved, launches):
    found = update_of(name, precision)
    assert found == (pytest.approx(moved, rel=0.05), launches + 1), "one more counts the steps"


def test_adam_mini_in_16_bit_on_a_gpu_needs_no_room_beside_its_state():
    cell = TrainingSetup(optimizer={"name": "adam_mini"}, seq_len=16)
    found = estimate_memory(target_model.find({**LLAMA, "n_layer": 2}), cell, full_depth=True)
    plain = estimate_memory(target_model.find({**LLAMA, "n_layer": 2}), of(cell, "lion"), full_depth=True)
    kept = found.most["parameters"] + found.most["gradients"] + found.most["optimizer_state"]
    assert kept <= found.phases["update"] < kept + 1024
    kept = plain.most["parameters"] + plain.most["gradients"] + plain.most["optimizer_state"]
    assert plain.phases["update"] > kept + 256 * 64 * 4, "the stages copy the embedding to fp32"


@pytest.mark.slow
def test_the_first_trace_of_a_process_equals_the_next():
    code = (
        "from lowmem.memory import target_model; from lowmem.memory.accountant import TrainingSetup, trace\n"
        f"t = target_model.find({LLAMA})\n"
        "c = TrainingSetup(optimizer={'name': 'adamw'}, seq_len=64, gpus=2, precision='master')\n"
        "print(trace(t, c, 2) == trace(t, c, 2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        timeout=200,
    )
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_a_trace_leaves_the_garbage_collector_as_it_was(monkeypatch):
    seen = []
    monkeypatch.setattr(accountant, "stepper", lambda *_: lambda: seen.append(gc.isenabled()))
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            trace(target_model.find(LLAMA), THERE, 2)
            assert gc.isenabled() == before
        finally:
            gc.enable()
    assert seen == [False, False]


def test_the_search_for_the_largest_batch_traces_two_or_three_of_them(monkeypatch):
    asked = []
    monkeypatch.setattr(
        throughput, "estimate_memory", lambda _, cell: asked.append(cell.batch) or estimate_memory(_, cell)
    )
    cell, gpu = of(THERE, "sgd", checkpointing=True), dataclasses.replace(hardware.find("t4"), memory=1.1)
    best = throughput.plan(target_model.find(LLAMA), cell, gpu).batch
    peaks = [estimate_memory(target_model.find(LLAMA), of(cell, "sgd", batch=n)).peak for n in (best, best + 1)]
    assert peaks[0] <= gpu.usable < peaks[1]
    assert len(set(asked)) <= 3


def test_parts_add_up_to_the_peak_and_name_every_byte():
    found = estimate_memory(target_model.find(LLAMA), of(THERE, "adamw"))
    assert sum(found.parts.values()) == found.peak == max(found.phases.values())


def test_state_and_weights_are_counted_exactly():
    model = target_model.find(LLAMA)
    numbers = model.parameters()
    buffers = 2 * 128 * 32 * 2  # cosine and sine of 128 positions, 32 frequencies, 16 bits
    update = trace(model, of(THERE, "adamw"), model.depth)[0]["update"]
    assert update["parameters"] == 2 * numbers + buffers
    assert update["gradients"] == 2 * numbers
    assert update["optimizer_state"] == 4 * numbers


def test_sharding_divides_weights_and_state_by_the_ranks():
    model = target_model.find({**LLAMA, "n_layer": 2})
    one, four = (estimate_memory(model, of(THERE, "adamw", gpus=n, batch=1)) for n in (1, 4))
    assert four.phases["update"] < 0.3 * one.phases["update"]


@pytest.mark.slow
def test_zero_stages_need_less_and_less_at_the_update():
    model = target_model.find({**LLAMA, "n_layer": 2, "n_embd": 128, "n_hidden": 512})
    peaks = [estimate_memory(model, of(THERE, "adamw", gpus=4, batch=1, zero=stage)).peak for stage in (0, 2, 3)]
    assert peaks[0] > peaks[1] >= peaks[2]
    split = trace(model, of(THERE, "adamw", gpus=4, zero=1), 2)[0]["backward, loss"]["optimizer_state"]
    whole = trace(model, of(THERE, "adamw", gpus=4, zero=0), 2)[0]["backward, loss"]["optimizer_state"]
    assert split == pytest.approx(whole / 4, rel=0.01)


def test_tensor_parallelism_splits_layers_and_keeps_the_rest_whole():
    model = target_model.find(LLAMA)
    one = trace(model, of(THERE, "adam_mini"), 2)[0]["forward, embedding"]["parameters"]
    two = trace(model, of(THERE, "adam_mini", gpus=2, tensor_parallel=2), 2)[0]["forward, embedding"]["parameters"]
    layers = 2 * 2 * (4 * 64 * 64 + 3 * 64 * 160)  # two layers of 16-bit linear weights
    assert one - two == layers // 2


def test_checkpointing_keeps_fewer_activations_and_eager_attention_more():
    model = target_model.find(LLAMA)
    plain, saved, eager = (
        estimate_memory(model, of(THERE, "lomo", **changes)).kept
        for changes in ({}, {"checkpointing": True}, {"attention": "eager"})
    )
    assert saved < 0.6 * plain < plain < eager


def test_offloaded_moments_leave_the_gpu():
    model = target_model.find(LLAMA)
    here, away = (estimate_memory(model, of(THERE, "adamw", offload=flag)) for flag in (False, True))
    assert away.parts["optimizer_state"] == 0 and away.host > 4 * model.parameters() > 100 * here.host


@pytest.mark.parametrize(
    "settings",
    [{"name": "adamw", "state_dtype": "int8"}, {"name": "adam_mini", "state_dtype": "int8"}, {"name": "sm3"}],
)
def test_what_offloading_leaves_on_the_gpu_is_what_the_optimizer_keeps_there(settings):
    """Scales of 8-bit moments, block scalars and accumulators of rows stay, byte for byte as the optimizer says."""
    target = target_model.find(LLAMA)
    optimizer = make(target.make().bfloat16(), lr=1e-3, **settings)
    optimizer.prepare()
    found = {True: 0, False: 0}
    for p, state in optimizer.state.items():
        for key, x in state.items():
            if key != "step":
                found[optimizer.keeps_whole(p, key)] += x.numel() * x.element_size()
    counted = estimate_memory(target, dataclasses.replace(THERE, optimizer=settings, offload=True))
    assert counted.most["optimizer_state"] == found[True] > 0
    steps = 4 * len(optimizer.state)
    assert counted.host == found[False] + steps


def test_fused_backward_keeps_one_gradient():
    model = target_model.find(LLAMA)
    plain, fused = (estimate_memory(model, of(THERE, name)).most["gradients"] for name in ("sgd", "lomo"))
    assert plain == 2 * model.parameters()
    assert fused <= 2 * 2 * max(p.numel() for p in model.build(1, "fused").parameters())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"precision": "fp8"}, "precision"),
        ({"gpus": 8, "tensor_parallel": 3}, "nearest that does: 2"),
        ({"gpus": 4, "tensor_parallel": 4}, "does not divide 2 heads; the nearest: 2"),
        ({"seq_len": 4096}, "--seq-len 128"),
        ({"zero": 5}, "stages are 0, 1, 2 and 3"),
        ({"precision": "master", "optimizer": {"name": "lomo"}}, "keeps no fp32 copy"),
        ({"gpus": 2, "zero": 1, "optimizer": {"name": "lomo"}}, "--zero 3"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_with_the_nearest_that_do(changes, says):
    with pytest.raises(Misuse, match=says):
        estimate_memory(target_model.find(LLAMA), dataclasses.replace(THERE, **changes))


def test_nothing_is_left_behind_by_a_refused_cell():
    with pytest.raises(Misuse):
        estimate_memory(target_model.find(LLAMA), dataclasses.replace(THERE, gpus=4, tensor_parallel=4))
    assert not torch.distributed.is_initialized()
    assert estimate_memory(target_model.find(LLAMA), dataclasses.replace(THERE, gpus=2)).peak > 0


def test_tracker_counts_a_storage_once_and_forgets_it_when_it_is_gone():
    with Tracker() as tracker, tracker.during("forward, loss", "activations"):
        x = torch.zeros(1000)
        view = x[10:]
        assert tracker.live["activations"] == 4000
        del x
        assert tracker.live["activations"] == 4000
        del view
        assert tracker.live["activations"] == 0
    assert tracker.peaks["forward, loss"]["activations"] == 4000


def test_work_counts_the_operations_of_the_formula():
    model = target_model.find(LLAMA)
    batch, length, width, hidden, heads = 2, 64, 64, 160, 2
    tokens = batch * length
    linear = 5 * (4 * width**2 + 3 * width * hidden) + width * 256
    attention = 5 * 7 * batch * heads * length**2 * (width // heads)  # 2 + 5 products of which half is masked
    counted = estimate_memory(model, of(THERE, "sgd")).work
    assert counted.operations() == pytest.approx(6 * tokens * linear + attention)
    assert counted.operations("forward") == pytest.approx(2 * tokens * linear + attention * 2 / 7)
    assert counted.operations("update") == 0


def test_bytes_between_ranks_are_those_of_gather_and_scatter():
    model = target_model.find(LLAMA)
    found = estimate_memory(model, of(THERE, "sgd", gpus=2)).work
    moved = {
        stage: sum(n * k[2] for k, n in found.items() if k[:2] == (stage, "link")) for stage in ("forward", "backward")
    }
    weights = 2 * model.parameters()
    assert moved["forward"] == pytest.approx(weights, rel=0.01)  # all gathered
    assert weights < moved["backward"] < 2.05 * weights  # gathered again (the last layer is still there) and scattered


def test_work_of_a_deeper_model_is_a_line_in_its_layers():
    few, more = (
        OperationCounts({("forward", "stream", 8): 4}),
        OperationCounts({("forward", "stream", 8): 6, ("update", "stream", 2): 1}),
    )
    assert extrapolated(few, more, 3.0) == {("forward", "stream", 8): 10, ("update", "stream", 2): 3}


def test_largest_batch_fits_and_the_next_does_not():
    asked = []

    def peak(batch: int) -> int:
        asked.append(batch)
        return max(100 + 3 * batch, 40 + 10 * batch, 25 * batch - 60)

    for usable in (99, 103, 140, 141, 300, 1000, 10_000):
        for slope in (1, 5, 10, 100):
            best = throughput.largest_batch(peak, usable, slope, most=50)
            fits = [n for n in range(1, 51) if max(100 + 3 * n, 40 + 10 * n, 25 * n - 60) <= usable]
            assert best == (max(fits) if fits else None)
    assert len(asked) < 28 * 40


def test_speed_waits_for_what_takes_longest():
    gpu = dataclasses.replace(hardware.find("a100-80gb"), link=1e9)
    cell = dataclasses.replace(THERE, gpus=2)
    found = throughput.speed(
        OperationCounts({("forward", "stream", 1e6): 1, ("forward", "link", 1.5e9, "data"): 1}), cell, gpu
    )
    assert found.limits == {"forward": "link"}
    assert found.seconds == pytest.approx(1.0)  # half of the bytes cross the link, at three quarters of its bandwidth
    assert found.tokens_per_s == pytest.approx(2 * 2 * 64 / found.seconds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ("llama-7b", {"gpus": 4, "precision": "mixed"}),
        ("gpt2:1.5b", {"checkpointing": True}),
        ("tinyllama-1.1b", {}),
    ],
)
def test_each_family_at_full_depth_agrees_with_the_extrapolation(size, changes):
    model = target_model.find(size)
    cell = of(THERE, "adam_mini", batch=1, seq_len=512, **changes)
    assert estimate_memory(model, cell).peak == pytest.approx(
        estimate_memory(model, cell, full_depth=True).peak, rel=0.002
    )


@pytest.mark.slow
def test_the_fitted_link_of_the_3090_server_is_what_the_first_row_gives():
    cell = TrainingSetup(optimizer={"name": "adamw"}, seq_len=1024, gpus=8, precision="master", checkpointing=True)
    found = estimate_memory(target_model.find("llama-7b"), cell)
    gpu = hardware.find("rtx-3090-x8")
    assert throughput.fitted_link(found.work, cell, gpu, 8 * 67.37) == pytest.approx(gpu.link, rel=0.001)


def test_with_16_bit_weights_adamw_is_torchs_fused_one_and_adam_mini_saves_a_moment_and_no_copies():
    """The base line of every plan holds no copies of a tensor during its update, so what Adam-mini saves is v alone."""
    target = target_model.find({**LLAMA, "vocab_size": 4096})
    adamw, fused, mini = (estimate_memory(target, of(THERE, name)) for name in ("adamw", "adamw_fused", "adam_mini"))
    assert (adamw.peak, adamw.phases) == (fused.peak, fused.phases)
    weights = 2 * target.parameters()  # bytes in 16 bits
    assert adamw.phases["update"] == pytest.approx(4 * weights, rel=0.005)  # weights, gradients, both moments; tokens
    assert weights > adamw.phases["update"] - mini.phases["update"] > 0.9 * weights
