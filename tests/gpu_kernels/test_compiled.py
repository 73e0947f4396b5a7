"""The kernels as compiled for GPUs that are not here: how wide they load, and whether registers suffice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AMPERE, HOPPER = 80, 90
ROW = dict(kernel="short", warps=8, ROWS=1, WIDTH=4096)
TILED = dict(warps=4, TILE=2048)
CASES = {}
for capability in (AMPERE, HOPPER):
    for kind, noise in (("fp32", False), ("bf16", False), ("bf16", True), ("fp16", True)):
        for even in (True, False):
            case = dict(ROW, capability=capability, kind=kind, STOCH=noise, EVEN=even)
            CASES[f"row {capability} {kind} {noise} {even}"] = case
    for kernel in ("sums_long", "move_long", "coordinates", "plain"):
        case = dict(TILED, kernel=kernel, capability=capability, kind="bf16", STOCH=True, EVEN=True)
        CASES[f"{kernel} {capability}"] = case
    for shared in (True, False):
        coded = dict(kernel="codes", warps=8, capability=capability, kind="bf16", STOCH=True, EVEN=True, ROWS=8)
        CASES[f"codes {capability} {shared}"] = dict(coded, SHARED=shared)
    one = dict(ROW, capability=capability, kind="bf16", EVEN=True, one=True)
    longest = dict(kernel="short", warps=16, ROWS=1, WIDTH=16384, capability=capability, kind="fp32", EVEN=True)
    settle = dict(kernel="settle", warps=4, capability=capability, kind="fp32", TILE=2048, DOWN=32, LANES=1024)
    nested = dict(TILED, kernel="move_long", capability=capability, kind="bf16", STOCH=True, NEST=True, EVEN=True)
    CASES |= {f"one {capability}": one, f"longest {capability}": longest, f"settle {capability}": settle}
    CASES[f"nested {capability}"] = nested
    CASES[f"told {capability}"] = dict(ROW, capability=capability, kind="bf16", STOCH=True, EVEN=True, SKIPS=True)
    CASES[f"told, long {capability}"] = dict(CASES[f"move_long {capability}"], SKIPS=True)
    CASES[f"told, codes {capability}"] = dict(CASES[f"codes {capability} True"], SKIPS=True)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What came out of the compiler, case by case; a process of its own, in which nothing is interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "TRITON_DEFAULT_FP_FUSION": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    script = Path(__file__).with_name("ahead_of_time.py")
    done = subprocess.run(
        [sys.executable, script], input=json.dumps(CASES), env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
@pytest.mark.parametrize(("kind", "noise"), [("fp32", False), ("bf16", False), ("bf16", True), ("fp16", True)])
def test_rows_of_4096_load_16_bytes_at_once_and_fit_into_128_registers(compiled, capability, kind, noise):
    found = compiled[f"row {capability} {kind} {noise} True"]
    threads, size = 8 * 32, {"fp32": 4}.get(kind, 2)
    each = 4096 * size // 16 // threads  # accesses of a thread to one tensor
    assert found["wide"] == {"LDG.E.128": 3 * each, "STG.E.128": 2 * each}
    assert found["registers"] <= 128 and found["stack"] == 0
    assert not [name for name in found["narrow"] if ".U16" in name]


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
def test_rows_at_uneven_addresses_never_load_more_than_an_element(compiled, capability):
    for kind, noise in (("fp32", False), ("bf16", False), ("bf16", True), ("fp16", True)):
        found = compiled[f"row {capability} {kind} {noise} False"]
        assert found["wide"] == {} and found["stack"] == 0


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
@pytest.mark.parametrize(
    "name",
    ["sums_long", "move_long", "coordinates", "plain", "one", "nested", "longest", "told", "told, long", "told, codes"],
)
def test_every_other_kernel_loads_wide_and_spills_nothing(compiled, name, capability):
    found = compiled[f"{name} {capability}"]
    spilled = (
        8 if (name, capability) == ("longest", HOPPER) else 0
    )  # bytes a thread, since huge gradients are bounded in m
    assert found["wide"] and found["registers"] <= 128 and found["stack"] <= spilled
    assert not [access for access in found["narrow"] if ".U16" in access]


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
@pytest.mark.parametrize("shared", [True, False])
def test_moments_in_codes_load_wide_and_spill_nothing(compiled, shared, capability):
    found = compiled[f"codes {capability} {shared}"]
    assert found["wide"] and found["registers"] <= 128 and found["stack"] == 0


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
def test_block_scalars_are_settled_without_spills(compiled, capability):
    found = compiled[f"settle {capability}"]
    assert found["registers"] <= 128 and found["stack"] == 0
