"""Facts about GPUs, and the few numbers that the performance model is calibrated with, each with its source.

Peaks are the makers' own: dense 16-bit tensor-core operations per second with fp32 sums, memory and link bandwidth in
one direction, board power (data sheets of NVIDIA's A100, A800, H100, H200, H800, V100, L4, L40S, A10, A40, T4; the GA102
and Ada white papers for RTX cards). Nobody reaches them: MATMUL, STREAM and LINK say how much of each a large kernel
gets. These three are round numbers from common experience with cuBLAS, element-wise kernels and NCCL, fixed before any
comparison with published throughput, and the same for every GPU.
"""

from __future__ import annotations

import dataclasses

from lowmem.errors import Misuse, nearest

MATMUL = 0.75  # share of the peak that large 16-bit matrix products reach
STREAM = 0.85  # share of the memory bandwidth that element-wise kernels reach
LINK = 0.75  # share of the link's bandwidth that large collectives reach
LAUNCH = 6e-6  # seconds that the host needs to start one kernel from eager PyTorch
# The same on a DTensor: what PyTorch's own test of August 2025 (test_dtensor_dispatch_overhead.py, pull request 159699)
# expects of an addition, when 2.8 was new. 2.13 needs 4.7 to 7e-5 in benchmarks/dtensor_dispatch.py.
DTENSOR = 9e-5
OUTSIDE = 1.0  # GiB outside PyTorch's allocator: CUDA context, cuBLAS and NCCL buffers


@dataclasses.dataclass(frozen=True)
class Gpu:
    """memory: GiB that PyTorch sees. flops: 16-bit operations/s. stream: bytes/s to its memory. link: bytes/s to other
    GPUs of the machine, one direction. watts: board power. calibrated: what of it was fitted, and to what; None: nothing."""

    name: str
    memory: float
    flops: float
    stream: float
    link: float
    watts: int
    calibrated: str | None = None

    @property
    def usable(self) -> float:
        """Bytes left for PyTorch's allocator."""
        return (self.memory - OUTSIDE) * 2**30


def _gpu(name: str, memory: float, teraflops: float, stream: float, link: float, watts: int) -> Gpu:
    return Gpu(name, memory, teraflops * 1e12, stream * 1e9, link * 1e9, watts)


GPUS = {  # GiB, TFLOP/s, GB/s, GB/s, W
    "t4": _gpu("T4", 14.6, 65, 320, 15.8, 70),
    "v100-16gb": _gpu("V100-16GB", 15.8, 125, 900, 150, 300),
    "v100-32gb": _gpu("V100-32GB", 31.7, 125, 900, 150, 300),
    "a10": _gpu("A10", 22.1, 125, 600, 31.5, 150),
    "a40": _gpu("A40", 44.4, 150, 696, 31.5, 300),
    "a6000": _gpu("RTX A6000", 47.5, 155, 768, 31.5, 300),
    "a100-40gb": _gpu("A100-40GB", 39.4, 312, 1555, 300, 400),
    "a100-80gb": _gpu("A100-80GB", 79.2, 312, 2039, 300, 400),
    "a800-80gb": _gpu("A800-80GB", 79.2, 312, 2039, 200, 400),
    "h100-80gb": _gpu("H100-80GB", 79.1, 989, 3350, 450, 700),
    "h800-80gb": _gpu("H800-80GB", 79.1, 989, 3350, 200, 700),
    "h200-141gb": _gpu("H200-141GB", 139.8, 989, 4800, 450, 700),
    "l4": _gpu("L4", 22.0, 121, 300, 31.5, 72),
    "l40s": _gpu("L40S", 44.4, 362, 864, 31.5, 350),
    "rtx-3090": _gpu("RTX 3090", 23.7, 71, 936, 31.5, 350),
    "rtx-4090": _gpu("RTX 4090", 23.6, 165, 1008, 31.5, 450),
    "rtx-5090": _gpu("RTX 5090", 31.4, 210, 1792, 63, 575),
}
GPUS["rtx-3090-x8"] = dataclasses.replace(
    GPUS["rtx-3090"],
    name="RTX 3090 in a PCIe server of eight",
    link=3.112e9,  # throughput.fitted_link of that row; a test computes it again
    calibrated="link fitted to LOMO Table 2, first row (7B, AdamW, 67.37 tokens/s per GPU)",
)


def find(name: str) -> Gpu:
    """A GPU by its key; Misuse names the nearest one."""
    key = name.lower().replace("_", "-").replace(" ", "-")
    if key in GPUS:
        return GPUS[key]
    if "rtx-" + key.removeprefix("rtx") in GPUS:
        return GPUS["rtx-" + key.removeprefix("rtx")]
    if sizes := [known for known in GPUS if known.startswith(key + "-")]:
        raise Misuse(f"GPU {name!r}: which one, {' or '.join(sizes)}?")
    raise Misuse(f"unknown GPU {name!r}{nearest(key, GPUS)}")
