"""Write small GGUF files as llama.cpp would, for tests of their reader."""

import struct

import numpy as np


def write(path, fields: dict, tensors: dict) -> None:
    path.write_bytes(content(fields, tensors))


def content(fields: dict, tensors: dict) -> bytes:
    """fields: {key: str | int | float | list}. tensors: {name: (array, type)} with type F32, F16, Q8_0, Q4_0 or Q4_1."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    for key, value in fields.items():
        header += text(key) + typed(value)
    table, data = b"", b""
    for name, (array, kind) in tensors.items():
        raw, number = quantised(np.asarray(array, np.float32), kind)
        data += b"\0" * (-len(data) % 32)
        shape = array.shape[::-1]
        table += text(name) + struct.pack("<I" + "Q" * len(shape), len(shape), *shape)
        table += struct.pack("<IQ", number, len(data))
        data += raw
    start = header + table
    return start + b"\0" * (-len(start) % 32) + data


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    inner = typed(value[0])[:4]
    return struct.pack("<I", 9) + inner + struct.pack("<Q", len(value)) + b"".join(typed(item)[4:] for item in value)


def quantised(array: np.ndarray, kind: str) -> tuple[bytes, int]:
    """(bytes, number of the type): rounding to the grid of each block."""
    if kind == "F32":
        return array.astype("<f4").tobytes(), 0
    if kind == "F16":
        return array.astype("<f2").tobytes(), 1
    blocks, raw = array.reshape(-1, 32), b""
    for block in blocks:
        if kind == "Q8_0":
            scale = np.float16(abs(block).max() / 127 or 1)
            raw += scale.tobytes() + np.rint(block / np.float32(scale)).clip(-127, 127).astype("i1").tobytes()
            continue
        low = block.min() if kind == "Q4_1" else -abs(block).max()
        scale = np.float16(((block.max() if kind == "Q4_1" else -low) - low) / 15 or 1)
        offset = np.float16(low) if kind == "Q4_1" else np.float16(-8) * scale
        digits = np.rint((block - np.float32(offset)) / np.float32(scale)).clip(0, 15).astype("u1")
        raw += scale.tobytes() + (offset.tobytes() if kind == "Q4_1" else b"")
        raw += (digits[:16] | digits[16:] << 4).tobytes()
    return raw, {"Q8_0": 8, "Q4_0": 2, "Q4_1": 3}[kind]
