"""Weights and metadata of a GGUF file (version 2 or 3, little-endian), the format of llama.cpp, read without running it.

Layout: header, metadata, tensor table, padding, data. Numbers of F32, F16, Q8_0, Q4_0 and Q4_1 tensors are read; the
last three hold blocks of 32 numbers with a scale (and an offset) in fp16.
"""

import math
import struct
from pathlib import Path

import numpy as np

from lowmem.errors import Failed

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCK = 32
MOST_AXES, DEEPEST = 4, 8  # of a tensor, as llama.cpp has them; of lists in lists
LEAST_FIELD, LEAST_TENSOR = 13, 24  # bytes that each takes in the header
TYPES = {  # number in the file: (name, numpy dtype of one element or block, numbers in it)
    0: ("F32", np.dtype("<f4"), 1),
    1: ("F16", np.dtype("<f2"), 1),
    2: ("Q4_0", np.dtype([("scale", "<f2"), ("pairs", "u1", BLOCK // 2)]), BLOCK),
    3: ("Q4_1", np.dtype([("scale", "<f2"), ("offset", "<f2"), ("pairs", "u1", BLOCK // 2)]), BLOCK),
    8: ("Q8_0", np.dtype([("scale", "<f2"), ("numbers", "i1", BLOCK)]), BLOCK),
}


class Gguf:
    """An open file: `fields` {key: value}, `names` of its tensors, `tensor(name)` -> fp32 array, outermost axis first."""

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self.data = np.memmap(self.path, mode="r")
            self._place = 0
            self._read_header()
        except (OSError, ValueError, struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise Failed(f"{path} is not a whole GGUF file ({message}); delete it and prepare it again") from error

    def _read_header(self) -> None:
        if self._take(4) != b"GGUF":
            raise ValueError("its first bytes are not GGUF")
        version, tensors, fields = self._unpack("IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version}; 2 and 3 are supported")
        if fields * LEAST_FIELD + tensors * LEAST_TENSOR > len(self.data):
            raise ValueError(f"it claims {fields} fields and {tensors} tensors, more than fit into it")
        self.fields = {}
        for _ in range(fields):
            key = self._string()
            self.fields[key] = self._value(self._unpack("I")[0])
        table = {}
        for _ in range(tensors):
            name = self._string()
            [axes] = self._unpack("I")
            if axes > MOST_AXES:
                raise ValueError(f"the tensor {name[:40]} has {axes} axes")
            shape = self._unpack("Q" * axes)
            kind, offset = self._unpack("IQ")
            if 0 in shape or (kind in TYPES and math.prod(shape) % TYPES[kind][2]):
                raise ValueError(f"the tensor {name[:40]} has the invalid shape {shape}")
            table[name] = (shape[::-1], kind, offset)  # the file names the innermost axis first
        alignment = self.fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"its alignment is {str(alignment)[:20]!r}")
        start = -(-self._place // alignment) * alignment
        self._table = {name: (shape, kind, start + offset) for name, (shape, kind, offset) in table.items()}
        for name, (shape, kind, at) in self._table.items():
            if kind in TYPES and at + size_of(shape, kind) > len(self.data):
                raise ValueError(f"it ends before the tensor {name[:40]}")

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return list(self._table)

    def tensor(self, name: str) -> np.ndarray:
        """The numbers of a tensor in fp32. Raises Failed for a missing one, or one of a type that is not read here."""
        if name not in self._table:
            raise Failed(f"{self.path} holds no tensor {name!r}; it is not the expected model")
        shape, kind, at = self._table[name]
        if kind not in TYPES:
            known = ", ".join(name for name, _, _ in TYPES.values())
            raise Failed(f"{self.path}: {name} has the quantisation type {kind}; supported are {known}")
        kind_name, element, numbers = TYPES[kind]
        raw = np.frombuffer(self.data[at : at + size_of(shape, kind)], element)
        if numbers == 1:
            return raw.astype(np.float32).reshape(shape)
        scale = raw["scale"].astype(np.float32)[:, None]
        if kind_name == "Q8_0":
            return (scale * raw["numbers"]).reshape(shape)
        pairs = raw["pairs"]  # (blocks, 16): the first half of a block in the low bits, the second in the high ones
        digits = np.concatenate([pairs & 15, pairs >> 4], axis=1).astype(np.float32)
        if kind_name == "Q4_0":
            return (scale * (digits - 8)).reshape(shape)
        return (scale * digits + raw["offset"].astype(np.float32)[:, None]).reshape(shape)

    def _take(self, count: int) -> bytes:
        if self._place + count > len(self.data):
            raise ValueError("it ends inside its header")
        self._place += count
        return self.data[self._place - count : self._place].tobytes()

    def _unpack(self, kinds: str) -> tuple:
        return struct.unpack("<" + kinds, self._take(struct.calcsize("<" + kinds)))

    def _string(self) -> str:
        return self._take(self._unpack("Q")[0]).decode("utf-8", "replace")

    def _value(self, kind: int, depth: int = 0):
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._unpack(SCALARS[kind])[0]
        if depth > DEEPEST:
            raise ValueError("its lists are nested too deeply")
        inner, count = self._unpack("IQ")
        if inner in SCALARS:
            return list(self._unpack(f"{count}{SCALARS[inner]}"))
        return [self._value(inner, depth + 1) for _ in range(count)]


def size_of(shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor."""
    _, element, numbers = TYPES[kind]
    return math.prod(shape) // numbers * element.itemsize
