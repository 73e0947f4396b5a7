"""A tiny root with real files: prepared tokens that a two-layer model can learn, and runs over them.

As a script, `python tiny.py ROOT RUN.json` trains one run, for tests that kill it.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import prepared_folders

from lowmem import experiments, record

ADAM_MINI = {"name": "adam_mini", "lr": 0.01, "betas": [0.9, 0.95]}
LOMO = {"name": "lomo", "lr": 0.1, "max_grad_norm": 1.0}
MODEL = {"name": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 64, "block_size": 32}


def make_root(root: Path) -> Path:
    """data/prepared/tiny-byte with tokens whose next token depends on the last."""
    folder = root / "data" / "prepared" / "tiny-byte"
    folder.mkdir(parents=True)
    steps = np.random.default_rng(0).choice([1, 2, 7], size=6000, p=[0.6, 0.3, 0.1])
    tokens = (np.cumsum(steps) % 64).astype(np.uint8)
    tokens[:5000].tofile(folder / "train.bin")
    tokens[5000:].tofile(folder / "val.bin")
    meta = {"dataset": "tiny", "source": "package", "tokenizer": "byte", "vocab_size": 64, "dtype": "uint8"}
    prepared_folders.seal(folder, **meta, train_tokens=5000, val_tokens=1000)
    return root


def make_run(
    variant: str = "a", seed: int = 0, optimizer: dict | None = None, model: dict | None = None, **train
) -> dict:
    """A run of 20 steps; keyword arguments replace train settings."""
    config = {
        "task": "pretrain",
        "data": {"dataset": "tiny", "source": "package", "tokenizer": "byte"},
        "model": {**MODEL, **(model or {})},
        "optimizer": optimizer or {"name": "adamw", "lr": 0.01},
        "schedule": {"name": "cosine", "warmup_steps": 3, "min_lr": 0.001},
        "train": {"steps": 20, "seq_len": 16, "batch_size": 4, "eval_every": 5, "eval_batches": 2, **train},
    }
    return {
        "id": f"trial/{variant}/seed{seed}",
        "experiment": "trial",
        "variant": variant,
        "seed": seed,
        "tier": "smoke",
        "config": config,
        "config_hash": experiments.config_hash({**config, "seed": seed}),
        "resources": {"threads": 1, "mem_mb": 2000, "gpus": 0, "minutes": 30},
    }


def curve(root, run):
    """Lines of the run's curve."""
    return [json.loads(line) for line in (record.folder(root, run) / "curve.jsonl").read_text().splitlines()]


def twin(root, tmp_path):
    """A second root with the same data and no results."""
    other = tmp_path / "twin"
    shutil.copytree(root / "data", other / "data")
    return other


def differences(root, other, run):
    """What differs between the records of a run in two roots."""
    return record.equal(record.folder(root, run), record.folder(other, run))


def environment() -> dict[str, str]:
    """For a child process: this package and these helpers, one thread."""
    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{here.parent / 'src'}{os.pathsep}{here}", "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    from lowmem import train

    sys.exit(train.run_job(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
