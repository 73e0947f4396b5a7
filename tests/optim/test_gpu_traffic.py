"""What a step starts on a GPU and moves through its memory, rule by rule, so that no change adds a pass unnoticed.

Counted on meta tensors (launches.py), without the Triton kernels, whose share stands in tests/gpu_kernels.
"""

import functools
from pathlib import Path

import pytest
import torch
from launches import Launches, on_meta, step

from lowmem import optim
from lowmem.models import llama
from lowmem.optim import AdamMini, FusedBackward, adamw, sgd

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def meta_is_a_gpu(monkeypatch):
    monkeypatch.setattr(adamw, "ON", ("meta",))
    monkeypatch.setattr(sgd, "IN_FP32", ("meta",))


@functools.cache
def llama_134m():
    with torch.device("meta"):
        return llama.build(n_layer=12, n_head=12, n_embd=768, n_hidden=2048, vocab_size=32000, block_size=1024)


@functools.cache
def llama_7b():
    with torch.device("meta"):
        return llama.build("llama2-7b")


def rule(name, **settings):
    def build(partition):
        parameters = partition if name == "AdamMini" else list(partition.named_parameters())
        return getattr(optim, name)(parameters, lr=1e-3, **settings)

    return build


def inside(build, **settings):
    return lambda partition: FusedBackward(build(partition), **settings)


def counted(model, dtype, build):
    """(launches of a step, bytes read and written per element, waits, uploads)."""
    partition, counter = on_meta(model, dtype), Launches()
    parameters = [p for _, p in partition.named_parameters()]
    step(build(partition), parameters, counter)
    elements = sum(p.numel() for p in parameters)
    return counter.count, round(counter.bytes / elements, 1), counter.waits, counter.uploads


DECAY, STOCHASTIC = dict(weight_decay=0.1), dict(rounding="stochastic")
INT8, CORRECTED = dict(state_dtype="int8"), dict(rounding="corrected")
MINI, CLIP, GROUPED = rule("AdamMini", **DECAY), dict(max_grad_norm=1.0), dict(grouped_norm=1.0)
# fmt: off
TABLE = {  # what: (rule, precision, launches of a step of a 134 M Llama of 111 tensors, bytes per element)
    "AdamMini fp32": (MINI, FP32, 250, 36.1),
    "AdamMini bf16": (MINI, BF16, 359, 66.1),
    "AdamMini bf16, moment in fp32": (rule("AdamMini", **DECAY, state_dtype=FP32), BF16, 341, 54.1),
    "AdamMini bf16 stochastic": (rule("AdamMini", **DECAY, **STOCHASTIC), BF16, 3552, 166.1),
    "AdamMini fp32 inside backward": (inside(MINI), FP32, 1665, 36.1),
    "AdamMini fp32 inside backward, clipped": (inside(MINI, **CLIP), FP32, 1887, 48.1),
    "AdamW fp32": (rule("AdamW"), FP32, 8, 28.0),
    "AdamW bf16": (rule("AdamW"), BF16, 8, 14.0),
    "AdamW bf16 stochastic": (rule("AdamW", **STOCHASTIC), BF16, 3885, 288.0),
    "Lomo fp32": (rule("Lomo"), FP32, 113, 12.0),
    "Lomo fp32 clipped": (rule("Lomo", **CLIP), FP32, 224, 16.0),
    "Lomo fp32 clipped tensor by tensor": (rule("Lomo", **GROUPED), FP32, 1001, 24.0),
    "Lomo bf16": (rule("Lomo"), BF16, 113, 6.0),
    "Lomo bf16 clipped": (rule("Lomo", **CLIP), BF16, 224, 8.0),
    "Lomo bf16 stochastic": (rule("Lomo", **STOCHASTIC), BF16, 1110, 80.0),
    "Lomo bf16 clipped, stochastic": (rule("Lomo", **CLIP, **STOCHASTIC), BF16, 1332, 90.0),
    "AdaLomo fp32": (rule("AdaLomo"), FP32, 3474, 84.1),
    "AdaLomo bf16": (rule("AdaLomo"), BF16, 3807, 102.1),
    "Adafactor fp32": (rule("Adafactor", **DECAY), FP32, 3807, 92.1),
    "Adafactor bf16": (rule("Adafactor", **DECAY), BF16, 4140, 110.1),
    "CAME fp32": (rule("CAME", **DECAY), FP32, 4467, 152.2),
    "CAME bf16": (rule("CAME", **DECAY), BF16, 5022, 182.2),
    "SM3 fp32": (rule("SM3", **DECAY), FP32, 1540, 76.1),
    "SM3 bf16": (rule("SM3", **DECAY), BF16, 2095, 106.1),
    "Lion fp32": (rule("Lion", **DECAY), FP32, 555, 52.0),
    "Lion bf16": (rule("Lion", **DECAY), BF16, 1110, 82.0),
    "Lamb fp32": (rule("Lamb", **DECAY), FP32, 2775, 112.0),
    "Lamb bf16": (rule("Lamb", **DECAY), BF16, 3552, 154.0),
    "SGD fp32": (rule("SGD"), FP32, 7, 12.0),
    "SGD bf16": (rule("SGD"), BF16, 7, 6.0),
    "SGD fp32, momentum": (rule("SGD", momentum=0.9), FP32, 333, 32.0),
    "SGD bf16, momentum": (rule("SGD", momentum=0.9), BF16, 888, 62.0),
    "AdamMini fp32, moment in int8": (rule("AdamMini", **DECAY, **INT8), FP32, 4773, 156.4),
    "AdamMini bf16, moment in int8": (rule("AdamMini", **DECAY, **INT8), BF16, 5106, 174.4),
    "AdamMini fp32, moment in int8, inside backward": (inside(rule("AdamMini", **DECAY, **INT8)), FP32, 4773, 156.4),
    "AdamW fp32, moments in int8": (rule("AdamW", **DECAY, **INT8), FP32, 4218, 216.3),
    "Lion bf16, moment in int8": (rule("Lion", **DECAY, **INT8), BF16, 3996, 190.3),
    "AdamMini bf16 corrected": (rule("AdamMini", **DECAY, **CORRECTED), BF16, 4440, 190.1),
    "Lomo bf16 corrected": (rule("Lomo", **CORRECTED), BF16, 2664, 154.0),
}
# fmt: on


@pytest.mark.parametrize("what", TABLE)
def test_launches_and_bytes_of_a_step_are_those_of_the_table_and_nothing_waits(what):
    build, dtype, *expected = TABLE[what]
    assert counted(llama_134m(), dtype, build) == (*expected, 0, 0)


def test_the_page_of_benchmarks_prints_these_counts_beside_fused_adamw_and_says_that_nothing_was_timed():
    page = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert "On a GPU: counted, not timed." in page
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.count("|") == 7
    ]
    rows = {cells[0].partition(" (")[0]: cells[1:] for cells in lines}
    of = {what: (str(launches), f"{size}") for what, (_, _, launches, size) in TABLE.items()}

    def row(name, launches, *sizes):
        return [launches, rows[name][1], *sizes]

    fp32, bf16, stochastic = (of[f"AdamMini {kind}"] for kind in ("fp32", "bf16", "bf16 stochastic"))
    assert rows["`AdamMini`, plain PyTorch"] == row(
        "`AdamMini`, plain PyTorch", f"{fp32[0]}; {bf16[0]}", fp32[1], bf16[1], stochastic[1]
    )
    for name, key in (("`AdamW`", "AdamW"), ("`Lomo`", "Lomo")):
        fp32, bf16 = of[f"{key} fp32"], of[f"{key} bf16"]
        assert rows[name][:1] + rows[name][2:4] == [fp32[0], fp32[1], bf16[1]] and fp32[0] == bf16[0]
    fp32, bf16 = of["Lomo fp32 clipped"], of["Lomo bf16 clipped"]
    clipped = rows["`Lomo` with norm clipping, both passes"]
    assert clipped[:1] + clipped[2:4] == [fp32[0], fp32[1], bf16[1]]
    for name, key in (("`SGD`", "SGD {}"), ("`SGD` with momentum", "SGD {}, momentum")):
        fp32, bf16 = of[key.format("fp32")], of[key.format("bf16")]
        launches = fp32[0] if fp32[0] == bf16[0] else f"{fp32[0]}; {bf16[0]}"
        assert [rows[name][0], *rows[name][2:4]] == [launches, fp32[1], bf16[1]]
    fp32, bf16 = (of[f"AdamMini {kind}, moment in int8"] for kind in ("fp32", "bf16"))
    coded = rows["`AdamMini`, first moment in int8, plain PyTorch"]
    assert [coded[0], *coded[2:4]] == [f"{fp32[0]}; {bf16[0]}", fp32[1], bf16[1]]
    coded = rows["`AdamW`, moments in int8, plain PyTorch"]
    assert (coded[0], coded[2]) == of["AdamW fp32, moments in int8"]
    for name in ("AdamMini", "Lomo"):
        corrected = rows[f"`{name}`, bf16 weights with 8 bits of correction"]
        assert (corrected[0], corrected[3]) == of[f"{name} bf16 corrected"]
    assert {"`torch.optim.AdamW", "the official adam-mini 1.1.1"} <= {name.partition("(")[0] for name in rows}
    (ours, _, moved, *_), (theirs, _, more, *_) = rows["`AdamMini`, Triton kernels"], rows["`AdamW`"]
    told = f"`AdamMini` starts {ours} kernels and moves {moved} bytes per weight in fp32, where "
    assert told + f"the fused `AdamW` has {theirs} and {more}" in " ".join(
        (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split()
    )


def test_a_7b_model_starts_two_launches_per_tensor_and_those_on_lists():
    assert counted(llama_7b(), FP32, MINI) == (1243, 36.0, 0, 0)


def test_tensor_by_tensor_16_bit_weights_took_six_times_the_launches_and_the_same_bytes(monkeypatch):
    monkeypatch.setattr(AdamMini, "ways_elsewhere", ())
    assert counted(llama_134m(), BF16, MINI) == (2220, 66.1, 0, 0)


def test_what_needs_a_number_of_all_gradients_waits_once_per_step():
    assert counted(llama_134m(), FP32, rule("AdamMini", nonfinite="skip"))[2] == 1


@pytest.mark.parametrize("where", [MINI, inside(MINI)], ids=["step", "backward"])
def test_a_learning_rate_on_the_gpu_is_read_once_per_step(where):
    def build(partition):
        optimizer = where(partition)
        optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
        return optimizer

    assert counted(llama_134m(), FP32, build)[2] == 1
