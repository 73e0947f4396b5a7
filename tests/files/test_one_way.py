"""What is kept between runs is written and read in one way: no other module opens, loads, moves or removes such files.

A module that is listed does so with other files, or with parts of the one way; why stands beside it, and by which calls. A new
call has to be looked at.
"""

import ast
from pathlib import Path

import openers
import pytest

import lowmem

PACKAGE = Path(lowmem.__file__).parent
ONE_WAY = {
    "files/__init__.py": {".unlink", ".write_text", "open", "os.open", "os.replace"},
    "files/safe_names.py": {"os.open"},
    "kept_files.py": {".write_bytes", "open", "zipfile.ZipFile"},
}
OTHERS = {
    "kept files, through the one way": {
        "pipeline/record.py": {
            ".read_text",
            ".unlink",
            "numpy.load",
            "numpy.savez_compressed",
            "safetensors.torch.save_file",
        },
        "pipeline/archive.py": {
            ".read_bytes",
            ".rename",
            "tempfile.TemporaryDirectory",
            "shutil.rmtree",
            "tempfile.mkdtemp",
            "zipfile.ZipFile",
        },
        "pipeline/intact.py": {".read_text", ".unlink"},
        "reporting/report.py": {".read_text", ".unlink"},
        "training/checkpoint.py": {".unlink", "shutil.rmtree", "torch.load", "torch.save"},
        "training/checkpoint_metadata.py": {".read_bytes", "torch.load", "torch.save"},
        "training/sharded_checkpoint.py": {
            *("os.replace", "shutil.rmtree", "torch.distributed.checkpoint.load", "torch.distributed.checkpoint.save")
        },
        "training/loop.py": {".unlink", "open", "os.truncate"},  # the curve, whose hash stands in checkpoint and record
        "training/job.py": {".unlink"},
        "data/prepare.py": {
            *(".open", ".read_text", ".write_bytes", "numpy.load", "numpy.memmap", "numpy.save", "os.replace"),
            *("shutil.copyfileobj", "shutil.rmtree", "tempfile.mkdtemp"),
        },
        "optim/core/kernel_build.py": {  # the compiled kernel, with its hash in itself
            *(".read_bytes", ".read_text", ".unlink", "mmap.mmap", "os.replace", "os.unlink"),
            *("tempfile.NamedTemporaryFile", "tempfile.TemporaryDirectory", "tempfile.TemporaryFile"),
        },
    },
    "files of a prepared folder, or weights, that were checked before": {
        "data/tokenizers.py": {".read_bytes"},
        "finetuning/dialogues.py": {".read_text"},
        "tasks/superglue.py": {".read_text"},
        "weights/gguf.py": {"numpy.memmap"},
        "vision/reference_networks.py": {"safetensors.torch.load_file"},
    },
    "downloads in the making, and what was downloaded, whose hashes fetch.py checks": {
        "data/fetch.py": {".unlink", "shutil.rmtree", "tempfile.mkdtemp"},
        "data/archives.py": {".open", "gzip.GzipFile", "tarfile.open", "zipfile.ZipFile"},
        "data/image_files.py": {"PIL.Image.open"},
        "data/sources/client.py": {"os.replace", "tempfile.TemporaryFile"},
        "data/sources/folder.py": {".unlink", "shutil.copyfile", "shutil.rmtree"},
        "data/sources/hub.py": {".open", ".unlink", "gzip.GzipFile", "gzip.open", "os.replace"},
        "data/sources/pip.py": {".write_text"},
        "data/sources/url.py": {".open", ".read_text", ".unlink", ".write_text", "os.replace"},
    },
    "what people write or give": {
        "models/_hub.py": {".from_pretrained"},
        "reporting/published_check.py": {".read_text"},
        "reporting/readme.py": {".read_text"},
        "memory/cells_page.py": {".read_text"},
        "weights/lazy_weights.py": {"safetensors.safe_open"},
        "weights/pretrained.py": {".from_file"},
    },
    "source text of this package": {
        "memory/model_names.py": {".read_text"},
        "optim/__init__.py": {".read_text"},
        "pipeline/model_settings.py": {".read_text"},
        "pipeline/planning.py": {".read_text"},
        "provenance/__init__.py": {".read_text"},
    },
    "the system, streams in memory and folders that are thrown away": {
        "analysis/hessian.py": {"open"},
        "cli/__init__.py": {"os.open"},  # the null device, where nobody reads the output any more
        "memory/measured_cells.py": {".write_text", "tempfile.TemporaryDirectory"},
        "memory/measured_peak.py": {".read_text"},
        "pipeline/load.py": {".read_text"},
        "pipeline/verify.py": {".symlink_to", "tempfile.TemporaryDirectory"},
        "reporting/plots.py": {".savefig"},
        "training/machine.py": {".read_text"},
        "training/usage.py": {".read_text", ".write_text"},
    },
}
KNOWN = ONE_WAY | {name: calls for modules in OTHERS.values() for name, calls in modules.items()}


def test_no_other_call_opens_writes_moves_or_removes_files():
    found = {
        path.relative_to(PACKAGE).as_posix(): openers.calls(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert {name: calls for name, calls in found.items() if calls} == KNOWN


WAYS = (
    "import numpy as q\nq.load(p)",
    "from numpy import load as it\nit(p)",
    "import torch\ntorch.load(p)",
    "def f():\n    import torch as t\n    t.save(x, p)",
    "open(p, 'w').write(x)",
    "import json\njson.dump(x, f)",
    "from json import load\nload(f)",
    "import zipfile as z\nz.ZipFile(p, 'w')",
    "from zipfile import ZipFile\nZipFile(p)",
    "import shutil\nshutil.copy(a, b)",
    "from shutil import move as m\nm(a, b)",
    "import os\nos.replace(a, b)",
    "from os import remove\nremove(a)",
    "import pickle\npickle.loads(x)",
    "import numpy as np\nread = np.load\nread(p)",
    "p.write_bytes(x)",
    "folder.joinpath(name).read_text()",
    "import tempfile\ntempfile.mkstemp()",
    "from safetensors.torch import load_file\nload_file(p)",
    "import gzip\ngzip.open(p)",
    "array.tofile(p)",
    "from pathlib import Path\nPath(p).unlink()",
    "import io\nio.open(p)",
    "import torch.distributed.checkpoint as dcp\ndcp.save(x, checkpoint_id=p)",
)


@pytest.mark.parametrize("text", WAYS)
def test_each_way_to_a_file_is_seen(text):
    assert openers.calls(text)


@pytest.mark.parametrize(
    "text", ["x = 'open(p)'", "words.replace(a, b)", "files.read_json(p)", "import json\njson.loads(x)"]
)
def test_what_opens_nothing_is_not_seen(text):
    assert openers.calls(text) == set()


SAFE = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "from_pretrained": ("trust_remote_code", False),
}
SAFE |= {"from_config": ("trust_remote_code", False), "np.save": ("allow_pickle", False)}


def test_no_reader_may_run_what_is_in_a_file():
    looked_at = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            written = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            for name, (key, value) in SAFE.items():
                if written == name or written.endswith(f".{name}"):
                    given = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg == key}
                    assert given == {key: value}, f"{path}, line {node.lineno}: {written} without {key}={value}"
                    looked_at += 1
    assert looked_at >= 7
