"""Hugging Face Trainer with Adam-mini, handed over or built by create_optimizer, and with LOMO inside backward.

sh examples/environment.sh frameworks
.venv/frameworks/bin/python examples/trainer.py [adam_mini | create_optimizer | lomo] [FOLDER] [resume]
"""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lowmem.integrations.huggingface import FusedTrainer
from lowmem.optim import AdamMini, Lomo


class AdamMiniTrainer(Trainer):
    """Builds the optimizer when the Trainer asks for it: under FSDP the model is sharded by then."""

    def create_optimizer(self, model=None):
        settings = dict(lr=self.args.learning_rate, weight_decay=self.args.weight_decay, no_decay=["*norm*"])
        self.optimizer = self.optimizer or AdamMini(model or self.model, **settings)
        return self.optimizer


how = sys.argv[1] if len(sys.argv) > 1 else "adam_mini"
folder = sys.argv[2] if len(sys.argv) > 2 else "results/trainer"
torch.manual_seed(0)
shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=16, max_position_embeddings=32, **shape))
data = [{"input_ids": (ids := (torch.arange(17) + i) % 16), "labels": ids} for i in range(256)]
settings = dict(per_device_train_batch_size=16, max_steps=20, save_steps=10, logging_steps=1, report_to="none")
if how == "lomo":  # LOMO clips by itself; the Trainer has no gradients left to clip
    args = TrainingArguments(folder, max_grad_norm=0, lr_scheduler_type="constant", use_cpu=True, **settings)
    trainer = FusedTrainer(model, args, train_dataset=data, optimizers=(Lomo(model, lr=0.3, max_grad_norm=1.0), None))
else:
    args = TrainingArguments(folder, learning_rate=3e-3, use_cpu=True, **settings)
    ready = {"optimizers": (AdamMini(model, lr=3e-3), None)} if how == "adam_mini" else {}
    trainer = (Trainer if ready else AdamMiniTrainer)(model, args, train_dataset=data, **ready)
trainer.train(resume_from_checkpoint="resume" in sys.argv)
