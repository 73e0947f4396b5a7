"""Files that mean harm, or that nobody meant: what a campaign puts in the place of files from elsewhere.

What would run code leaves a canary (CANARY in the folder that a payload is made for), and members of archives whose names lead
out of them lead to OUTSIDE, so that one look afterwards tells.
"""

import gzip
import io
import json
import os
import pickle
import random
import struct
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

from archive_bytes import tar_bytes, zip_bytes

CANARY = "canary"
OUTSIDE = Path(tempfile.gettempdir()) / f"lowmem-outside-{os.getpid()}"
CLIMBING = "../" * 20 + str(OUTSIDE).lstrip("/")  # the parent of / is /, so from any folder there


class Payload:
    """An object whose pickle runs a command of the system when it is read."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch '{self.place / CANARY}'",)


def code(place: Path) -> bytes:
    return pickle.dumps(Payload(place))


def texts(place: Path) -> dict[str, bytes]:
    """What may stand in the place of a text, a table or rows of JSON."""
    return {
        "empty": b"",
        "zeros": bytes(5000),
        "no UTF-8": b"\xff\xfe\x80 abc\n" * 20,
        "UTF-16": "a,b\n1,2\n".encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + b'{"a": 1}\n',
        "words": b"these are words\nand more of them\n",
        "one number": b"7",
        "a list": b"[1, [2], {}]\n",
        "rows that are lists": b"[1]\n[2]\n",
        "rows that are text": b'"x"\n"y"\n',
        "rows of other fields": b'{"a": 1}\n{"b": null}\n',
        "null": b"null\n",
        "deep": b"[" * 100_000,
        "deep and closed": b"[" * 5000 + b"]" * 5000,
        "not a number": b'{"label": NaN, "question": "x", "passage": "y"}\n',
        "infinity": b'{"label": -Infinity, "premise": "x", "hypothesis": "y"}\n',
        "5,000 digits": b'{"label": ' + b"9" * 5000 + b"}\n",
        "a float of many digits": b"1e999,2\n",
        "a ragged table": b"1,2,3\n4,5\n",
        "NUL inside": b'{"question": "a\\u0000b"}\x00\n',
        "other line ends": '{"question": "a\u2028b\u0085c", "passage": "d", "label": true}\r\n'.encode(),
        "half a surrogate": b'{"question": "\\ud800", "passage": "x", "label": true}\n' * 3,
        "one long line": b"x" * 3_000_000,
        "a pickle with code": code(place),
        "half of a gzip": gzip.compress(b"1,2\n" * 5000)[:30],
        "a gzip of zeros": gzip.compress(bytes(3_000_000)),
        "a gzip in a gzip": gzip.compress(gzip.compress(b"1,2\n")),
        "a gzip with a wrong sum": gzip.compress(b"1,2\n" * 99)[:-8] + bytes(8),
        "an archive": zip_bytes({"a.txt": b"x"}),
        "a picture": PICTURE,
    }


PICTURE = bytes.fromhex("89504e470d0a1a0a0000000d49484452000186a0000186a00802000000") + b"\0" * 40  # 100,000 x 100,000


def tars(member: str, data: bytes) -> dict[str, bytes]:
    """Archives with a good member beside what may not be in one, or of a form that is none."""

    def with_entry(
        name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0, mode: str = "w:gz"
    ) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as archive:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            archive.addfile(info)
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        return out.getvalue()

    whole = tar_bytes({member: data}, "w")
    header = bytearray(whole[:512])
    header[124:136] = b"-0000000060\0"
    sparse = bytearray(whole[:512])
    sparse[156:157] = b"S"
    return {
        "an absolute name": with_entry(str(OUTSIDE)),
        "a name that climbs": with_entry(CLIMBING),
        "the member a link": with_entry(member, tarfile.SYMTYPE, "/etc/passwd"),
        "the member a hard link": with_entry(member, tarfile.LNKTYPE, "../../etc/passwd"),
        "a link beside it": with_entry("beside", tarfile.SYMTYPE, "/etc/passwd"),
        "a device": with_entry("null", tarfile.CHRTYPE),
        "a pipe": with_entry("pipe", tarfile.FIFOTYPE),
        "the member a folder": with_entry(member, tarfile.DIRTYPE),
        "names with signs": with_entry("a\nb\u0007\u202e.txt"),
        "a name of 5,000 letters": with_entry("x" * 5000),
        "not UTF-8": with_entry("\udcff\udcfe"),
        "a negative size": bytes(header) + whole[512:],
        "a sparse header": bytes(sparse) + whole[512:],
        "a size of 8 GB": whole[:124] + b"77777777777\0" + whole[136:],
        "a wrong sum": whole[:148] + b"0000000\0" + whole[156:],
        "half": tar_bytes({member: data})[: len(tar_bytes({member: data})) // 2],
        "zeros": bytes(10240),
        "nothing": b"",
        "xz of nothing": tar_bytes({}, "w:xz"),
        "the member twice": tar_twice(member, data),
        "no tar": b"these are words" * 100,
    }


def tar_twice(member: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for content in (data, b"other"):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zips(member: str, data: bytes) -> dict[str, bytes]:
    """The same for zip and wheel."""
    good = zip_bytes({member: data})
    at = good.rindex(b"PK\x01\x02")

    def patched(offset: int, value: bytes, local: int | None = None) -> bytes:
        changed = bytearray(good)
        changed[at + offset : at + offset + len(value)] = value
        if local is not None:
            changed[local : local + len(value)] = value
        return bytes(changed)

    def entries(*pairs: tuple[str, bytes, int]) -> bytes:
        out = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            warnings.simplefilter("ignore")
            for name, content, mode in pairs:
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                archive.writestr(info, content, zipfile.ZIP_DEFLATED)
        return out.getvalue()

    return {
        "an absolute name": entries((member, data, 0), (str(OUTSIDE), b"x", 0)),
        "a name that climbs": entries((member, data, 0), (CLIMBING, b"x", 0)),
        "a drive": entries((member, data, 0), ("C:\\outside", b"x", 0)),
        "the member a link": entries((member, b"/etc/passwd", 0o120777)),
        "encrypted": patched(8, b"\x01\0", 6),
        "an unknown method": patched(10, b"\x63\0", 8),
        "a wrong sum": patched(16, b"\1\2\3\4", 14),
        "a size of 4 GB": patched(24, b"\xfe\xff\xff\xff"),
        "an offset outside": patched(42, b"\xff\xff\xff\x7f"),
        "half": good[: len(good) // 2],
        "no table": good[:at],
        "the member twice": entries((member, data, 0), (member, b"other", 0)),
        "a bomb": entries((member, bytes(200 << 20), 0)),
        "names with signs": entries((member, data, 0), ("a\nb\u202e", b"x", 0)),
        "nothing in it": zip_bytes({}),
        "no zip": b"these are words" * 100,
        "empty": b"",
    }


def safetensors(header: object, data: bytes = b"") -> bytes:
    packed = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data


def tensor_files(place: Path) -> dict[str, bytes]:
    """What may stand in the place of a file of weights."""
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "empty": b"",
        "words": b"these are words, not weights" * 9,
        "a header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
        "a header without end": struct.pack("<Q", 5000) + b"{",
        "no JSON": safetensors(b"[[[["),
        "deep JSON": safetensors(b'{"a":' * 9000),
        "a list": safetensors([1]),
        "offsets outside": safetensors({"w": {**one, "data_offsets": [0, 1 << 40]}}, bytes(8)),
        "offsets below 0": safetensors({"w": {**one, "data_offsets": [-8, 0]}}, bytes(8)),
        "offsets turned around": safetensors({"w": {**one, "data_offsets": [8, 0]}}, bytes(8)),
        "offsets that overlap": safetensors({"w": one, "v": one}, bytes(8)),
        "a shape of 2^62": safetensors({"w": {**one, "shape": [1 << 62, 8]}}, bytes(8)),
        "a shape that overflows": safetensors({"w": {**one, "shape": [1 << 33] * 3}}, bytes(8)),
        "an unknown kind": safetensors({"w": {**one, "dtype": "OBJ"}}, bytes(8)),
        "other tensors": safetensors({"w": one}, bytes(8)),
        "a pickle": code(place),
        "torch's archive with code": torch_archive(place),
    }


def torch_archive(place: Path) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save({"weight": Payload(place)}, out)
    return out.getvalue()


def gguf_files(good: bytes, chance: random.Random) -> dict[str, bytes]:
    """Headers of GGUF that say what cannot be, and good files with bytes of the header changed."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def headed(tensors: int, fields: int, rest: bytes = b"", version: int = 3) -> bytes:
        return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest

    def field(key: str, kind: int, value: bytes) -> bytes:
        return text(key) + struct.pack("<I", kind) + value

    def table(shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        return text("token_embd.weight") + sizes + struct.pack("<IQ", kind, offset)

    nested = field("a", 9, struct.pack("<IQ", 9, 1) * 5000)
    cases = {
        "empty": b"",
        "words": b"these are words" * 9,
        "2^63 tensors": headed(1 << 63, 0),
        "2^63 fields": headed(0, 1 << 63),
        "an array of 2^60": headed(0, 1, field("a", 9, struct.pack("<IQ", 4, 1 << 60))),
        "an array of 2^60 texts": headed(0, 1, field("a", 9, struct.pack("<IQ", 8, 1 << 60))),
        "an array of 2^60 arrays of nothing": headed(0, 1, field("a", 9, struct.pack("<IQ", 9, 1 << 60))),
        "arrays in arrays": headed(0, 1, nested),
        "a text of 2^63": headed(0, 1, struct.pack("<Q", 1 << 63)),
        "an unknown kind": headed(0, 1, field("a", 77, b"1234")),
        "alignment 0": headed(0, 1, field("general.alignment", 4, struct.pack("<I", 0))) + bytes(64),
        "alignment text": headed(0, 1, field("general.alignment", 8, text("x"))) + bytes(64),
        "alignment below 0": headed(0, 1, field("general.alignment", 5, struct.pack("<i", -32))) + bytes(64),
        "alignment not a number": headed(0, 1, field("general.alignment", 6, struct.pack("<f", float("nan"))))
        + bytes(64),
        "a shape that overflows": headed(1, 0, table((1 << 63, 4))) + bytes(64),
        "a shape of 0": headed(1, 0, table((0, 1 << 62))) + bytes(64),
        "33 numbers in blocks": headed(1, 0, table((33,), 8)) + bytes(200),
        "4,000 axes": headed(1, 0, table((1,) * 4000)) + bytes(200),
        "an offset of 2^63": headed(1, 0, table((4,), 0, 1 << 63)) + bytes(64),
        "an odd offset": headed(1, 0, table((4,), 0, 3)) + bytes(64),
        "another version": headed(0, 0, b"", 1),
        "half": good[: len(good) // 2],
    }
    for number in range(60):
        changed = bytearray(good)
        for _ in range(chance.choice([1, 1, 2, 8])):
            changed[chance.randrange(min(len(good), 3000))] = chance.choice(
                [0, 1, 127, 128, 255, chance.randrange(256)]
            )
        cases[f"bytes of the header changed, {number}"] = bytes(changed)
    return cases


def configurations() -> dict[str, object]:
    """What may stand in the config.json of a model's folder: changes of a good one (None: leave the key out)."""
    wrong = [0, -1, 10**6, 10**400, 2.5, "two", [1]]
    keys = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size")
    keys += ("intermediate_size", "max_position_embeddings", "rms_norm_eps", "eos_token_id", "head_dim")
    cases = {f"{key} {str(value)[:12]}": {key: value} for key in keys for value in wrong}
    for key in ("model_type", "rope_scaling", "rope_parameters", "rope_theta", "hidden_act", "tie_word_embeddings"):
        cases |= {
            f"{key} {str(value)[:12]}": {key: value} for value in (0, -1, "two", [1], {"a": 1}, {"rope_type": [1]})
        }
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    cases["code of its own"] = {"auto_map": own, "model_type": "own"}
    cases["code of its own beside a known kind"] = {"auto_map": own}
    cases["heads that do not divide"] = {"num_attention_heads": 3}
    cases["key heads that do not divide"] = {"num_key_value_heads": 3}
    cases["an end outside"] = {"eos_token_id": 10**9}
    return cases
