"""Compile the kernels for GPUs that are not here, and print what came out as JSON: {case: {registers, stack, shared, wide,
narrow}}. wide: loads and stores of 16 bytes; narrow: others of global memory by name. Its own process: the interpreter
must be off."""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton.backends.nvidia
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lowmem.optim.core import triton_codes, triton_kernels

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
TYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
POINTERS = dict(
    segments="*i64", tiles="*i32", gradients="*i64", groups="*fp32", partial="*fp32", rates="*fp32", seed="i32"
)


def compiled(kernel: str, capability: int, warps: int, kind: str, one: bool = False, **constants):
    """A compiled kernel whose tensors are all of one type, but for fp32 block scalars."""
    function = triton_codes.codes if kernel == "codes" else getattr(triton_kernels, kernel)
    dtype = TYPES[kind]
    fixed = dict(PT=dtype, GT=dtype, MT=dtype, VT=dtype, NEST=False, ONE=one, EXPLICIT=False, STOCH=False, SKIPS=False)
    fixed = {**fixed, **constants}
    fixed = {name: value for name, value in fixed.items() if name in function.arg_names}
    pointers = {**POINTERS, "gradients": f"*{kind}"} if one else POINTERS
    signature = {name: "constexpr" if name in fixed else pointers[name] for name in function.arg_names}
    places = {name: (i,) for i, name in enumerate(function.arg_names)}
    aligned = {places[n]: [["tt.divisibility", 16]] for n, kind in signature.items() if kind.startswith("*")}
    source = ASTSource(function, signature, {places[name]: value for name, value in fixed.items()}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def facts(binary: bytes) -> dict:
    """Read off a cubin with the tools that Triton brings."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()

        def tool(option: str) -> str:
            return subprocess.run(
                [TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True
            ).stdout

        usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", tool("--dump-resource-usage"))
        accesses = Counter(re.findall(r"\b((?:LDG|STG)\.E[.\w]*)", tool("--dump-sass")))
    wide = {name: n for name, n in accesses.items() if name.endswith(".128")}
    registers, stack, shared = map(int, usage.groups())
    return dict(
        registers=registers,
        stack=stack,
        shared=shared,
        wide=wide,
        narrow={n: k for n, k in accesses.items() if n not in wide},
    )


if __name__ == "__main__":
    cases = json.loads(sys.stdin.read())
    print(json.dumps({name: facts(compiled(**case).asm["cubin"]) for name, case in cases.items()}))
