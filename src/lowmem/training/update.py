"""One update of a model's weights: rate, micro-batches, gradients, clipping, optimizer. The only place that trains.

loop.py makes a run of updates, with evaluations, checkpoints and a record. A task that inspects training step by step
(tasks/hessian.py, tasks/rounding.py) calls them one by one.
"""

import math

import torch

from lowmem import distributed
from lowmem.errors import Diverged, Misuse
from lowmem.optim.core.clipping import total_norm
from lowmem.training import usage
from lowmem.training.lr_schedule import lr_at
from lowmem.training.task import Task, micro_batch


class Updates:
    """The updates of a run: task and optimizer, with the settings train and schedule of its configuration.

    ranks: processes that share each batch. parts: micro-batches of an update over all ranks.
    """

    def __init__(self, task: Task, optimizer, train: dict, schedule: dict | None, device: str, ranks: int = 1):
        self.task, self.model, self.optimizer = task, task.model, optimizer
        self.stepped = task.model  # what an update calls; evaluations call the model itself
        self.schedule, self.steps, self.clip_at = schedule or {}, train["steps"], train.get("grad_clip")
        self.device, self.bf16, self.ranks = device, train.get("precision", "fp32") == "bf16", ranks
        self.parts, self.accumulate = distributed.split_batch(train["batch_size"], micro_batch(train), ranks)
        self.fused = hasattr(optimizer, "backward")  # gradients are used inside backward and never gathered
        if self.fused and self.accumulate > 1:
            raise Misuse("an optimizer that updates inside backward cannot accumulate; drop train.micro_batch_size")
        if self.fused and self.clip_at:
            raise Misuse("an optimizer that updates inside backward clips by itself; set train.grad_clip to null")
        self.peak = [group["lr"] for group in optimizer.param_groups]
        self.gradient_bytes = 0  # of all gradients, once there are some

    def make(self, number: int) -> tuple[float, float | None, str | None]:
        """Update `number`, counted from 1: (mean loss, norm of the gradient before clipping, which of them is not finite).

        The norm is None where it is not known. Where something is not finite, the weights stay as they were.
        """
        for group, peak in zip(self.optimizer.param_groups, self.peak):
            group["lr"] = lr_at(number, peak, self.schedule, self.steps)
        many, losses = self.ranks > 1, []
        for part in range(self.accumulate):
            at = part * self.ranks + distributed.rank() if many else part
            batch = self.task.batch((number - 1) * self.parts + at)
            if self.fused and many:  # sharded weights are gathered anew for each pass
                losses.append(self.optimizer.backward(lambda batch=batch: self.loss(batch)))
                continue
            loss = self.loss(batch)
            losses.append(loss.detach())
            if not self.fused:
                (loss / self.accumulate if self.accumulate > 1 else loss).backward()
        train_loss = torch.stack(losses).mean().item()
        train_loss = distributed.mean(train_loss) if many else train_loss
        norm = None
        if self.fused and math.isfinite(train_loss):
            if not many:
                self.optimizer.backward(loss)
            norm = getattr(self.optimizer, "grad_norm", None)  # known when it clips by the global norm
        elif not self.fused:
            norm = self.clip()
        wrong = "loss" if not math.isfinite(train_loss) else None if math.isfinite(norm or 0.0) else "gradient"
        if not wrong:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return train_loss, norm, wrong

    def make_finite(self, number: int) -> float:
        """Update `number`; its mean loss. Diverged where loss or gradient is not finite."""
        loss, _, wrong = self.make(number)
        if wrong:
            raise Diverged(f"{wrong} is not finite at step {number}")
        return loss

    def loss(self, batch) -> torch.Tensor:
        """The task's loss of a micro-batch, a scalar."""
        with self.autocast():
            return self.task.loss(self.stepped, batch)

    def compile(self) -> None:
        """Compile what updates run."""
        if self.fused:  # a compiled whole-model backward would keep all gradients
            for part in self.model.blocks:
                part.compile()
        else:
            self.stepped = torch.compile(self.model)

    def autocast(self):
        """bf16 for products where the configuration says so."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)

    def clip(self) -> float:
        """Global norm of the gradients before clipping (train.grad_clip; null measures only)."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = total_norm(gradients)
        if self.clip_at:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_at, norm)
        self.gradient_bytes = self.gradient_bytes or usage.bytes_of(gradients)
        return norm.item()
