"""torchtitan's debug model with Adam-mini: the optimizer builder is all that changes.

sh examples/environment.sh torchtitan
.venv/torchtitan/bin/python -m torch.distributed.run --nproc-per-node 1 examples/torchtitan_debug.py [FOLDER] [STEPS]
"""

import pathlib
import sys

import torch

if not torch.cuda.is_available():
    import lowmem.integrations.torchtitan_cpu  # noqa: F401  (torchtitan itself knows accelerators only)
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torchtitan.hf_datasets import DatasetConfig, text_datasets
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.tools.logging import init_logger

from lowmem.integrations.torchtitan import Optimizers

folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "results/torchtitan")
(folder / "tokenizer").mkdir(parents=True, exist_ok=True)  # one character, one token
characters = Tokenizer(models.WordLevel({c: i for i, c in enumerate("?abcdefgh ")}, unk_token="?"))
characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
characters.save(str(folder / "tokenizer" / "tokenizer.json"))
rows = Dataset.from_list([{"text": "abcdefgh " * 40}] * 64)
text_datasets.DATASETS["tiny"] = DatasetConfig(path="", loader=lambda _: rows, sample_processor=lambda row: row["text"])

init_logger()
config = llama3_debugmodel()
config.optimizer = Optimizers.Config(name="adam_mini", settings={"lr": 3e-3, "betas": (0.9, 0.95)})
config.dump_folder, config.hf_assets_path, config.dataloader.dataset = str(folder), str(folder / "tokenizer"), "tiny"
config.training.steps = int(sys.argv[2]) if len(sys.argv) > 2 else 4
config.training.seq_len, config.training.local_batch_size = 64, 4
config.checkpoint.enable, config.checkpoint.interval = True, 2
config.validator.enable, config.parallelism.spmd_backend = False, "partial_dtensor"  # plain fully_shard
trainer = config.build()
trainer.train()
trainer.close()
