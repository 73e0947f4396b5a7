"""Optimizers that update inside backward in the Hugging Face Trainer. Those with step() need nothing: see examples/.

    trainer = FusedTrainer(model, args, train_dataset=data, optimizers=(Lomo(model, lr=3e-2, max_grad_norm=1.0), None))

Tried with transformers 5.23 and accelerate 1.15.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Trainer

from lowmem.optim.core.fused_backward import FusedBackward
from lowmem.optim.core.sharding import is_dtensor


class FusedTrainer(Trainer):
    """A Trainer whose training_step is opt.backward: for Lomo, AdaLomo and FusedBackward(...).

    On several processes give the optimizer process_group=torch.distributed.group.WORLD.
    Raises ValueError, when training starts, for settings of TrainingArguments that cannot work.
    """

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward, backward and update on one batch. Returns the loss, detached."""
        optimizer = getattr(
            self.optimizer, "optimizer", self.optimizer
        )  # accelerate's wrapper, or the optimizer itself
        check_settings(optimizer, self.args)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module  # the optimizer averages by itself, see its process_group
        model.train()
        inputs = self._prepare_inputs(inputs)

        def loss() -> torch.Tensor:
            with self.compute_loss_context_manager():
                return self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)

        sharded = any(is_dtensor(p) for p in model.parameters())  # then a second pass gathers the weights anew
        return optimizer.backward(loss if sharded else loss())


def check_settings(optimizer, args) -> None:
    """ValueError, one line, for what an update inside backward cannot do."""
    if not isinstance(optimizer, FusedBackward):
        raise ValueError(f"{type(optimizer).__name__} has step(); use transformers.Trainer as it is")
    if args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps}: gradients are used up inside backward and "
            "cannot be accumulated; set it to 1 and raise per_device_train_batch_size"
        )
    if args.max_grad_norm:
        raise ValueError(
            f"max_grad_norm={args.max_grad_norm}: no gradient is left for the Trainer to clip; set max_grad_norm=0 in "
            f"TrainingArguments and give {type(optimizer).__name__} its own max_grad_norm"
        )
    if args.fp16:
        raise ValueError("fp16=True brings a GradScaler, which needs gradients; use bf16, or loss_scale='dynamic'")
    if args.n_gpu > 1:
        raise ValueError("DataParallel over several GPUs of one process is not supported; start one process per GPU")
