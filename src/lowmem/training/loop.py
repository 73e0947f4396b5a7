"""The training loop of all runs: any model, task and optimizer, interrupted at any moment and continued bit for bit.

Tasks that look at a model while it trains (Hessians, rounding) make the same updates, update.py, and keep no checkpoints.
"""

import hashlib
import json
import math
import os
import time
from pathlib import Path
from types import ModuleType

import torch

from lowmem import distributed, progress, provenance
from lowmem.errors import Misuse
from lowmem.files import safe_names
from lowmem.optim._factory import make
from lowmem.pipeline import record
from lowmem.progress import say
from lowmem.training import checkpoint, machine, usage
from lowmem.training.task import Task
from lowmem.training.update import Updates
from lowmem.training.weight_sketch import sketch

KEPT = (
    "step",
    "seconds",
    "best",
    "train_loss",
    "val",
    "gradient_bytes",
    "unlogged",
)  # plain values of a Loop in its checkpoint


def train(root: Path, run: dict, task: ModuleType, made: dict, folder: Path, device: str, label: str) -> None:
    """Fill a run's record by training what the task builds."""
    missing = [key for key in ("train", "optimizer") if not run["config"].get(key)]
    if missing:
        raise Misuse(f"task {run['config']['task']} trains and needs {' and '.join(missing)} in its configuration")
    usage.reset_peak(device)
    built = task.build(run["config"], run["seed"], root, device)
    made["code"]["files"] |= provenance.hashes(root, built.inputs)
    if distributed.devices(run) > 1:
        from lowmem.training import fsdp

        built.model = fsdp.shard(built.model, run["seed"])
    optimizer = make(built.model, **run["config"]["optimizer"])
    try:
        Loop(run, built, optimizer, device, folder, made, label).run()
    finally:
        made["device"]["step_kernel"] = step_kernel(optimizer)


def step_kernel(optimizer) -> str | None:
    """The kernels that computed the updates, of this optimizer or one inside it, if not PyTorch's."""
    inside = (vars(optimizer).get(name) for name in ("inner", "fused", "beside"))
    found = [getattr(optimizer, "step_kernel", None), *(step_kernel(other) for other in inside if other is not None)]
    return next(filter(None, found), None)


class Loop:
    """State of one training run: what a checkpoint holds, and what each step needs."""

    def __init__(self, run, task: Task, optimizer, device: str, folder: Path, made: dict, label: str):
        self.settings, schedule = run["config"]["train"], run["config"].get("schedule")
        self.task, self.optimizer, self.device, self.made, self.label = task, optimizer, device, made, label
        self.model, self.folder, self.steps = task.model, folder, self.settings["steps"]
        self.many, self.keeps_weights = distributed.devices(run) > 1, run.get("keep_weights", False)
        ranks = distributed.world() if self.many else 1
        self.updates = Updates(task, optimizer, self.settings, schedule, device, ranks)
        self.units = self.updates.parts * task.units  # of a step
        self.path = checkpoint.place(folder, run["config_hash"])
        self.step, self.seconds, self.best, self.train_loss, self.val = 0, 0.0, None, None, {}
        self.times: list[float] = []
        self.unlogged: list[float] = []  # training losses since the last line of the curve
        self.gradient_bytes = 0
        self.curve_hash = hashlib.sha256()  # of all that was written to the curve
        self.means_before: dict | None = None  # means() of a checkpoint, until a step was made since

    def run(self) -> None:
        """Train to the end or to divergence and fill the record."""
        self.resume()
        if self.settings.get("compile"):
            self.compile()
        self.model.train()
        show = progress.progress(self.label, self.steps)
        every = self.settings.get("checkpoint_every") or math.inf
        curve_file = self.folder / "curve.jsonl" if distributed.rank() == 0 else os.devnull
        opener = safe_names.opened if distributed.rank() == 0 else None
        with open(curve_file, "a", encoding="utf-8", opener=opener) as curve, machine.on_sigterm() as sigterm_received:
            stopped = (lambda: distributed.any_rank(sigterm_received())) if self.many else sigterm_received
            if self.step == 0 and (self.settings.get("eval_first", True) or self.steps == 0):
                self.write(curve, 0, **self.evaluate())
            while self.step < self.steps and not self.made["status"]:
                self.one_step(curve)
                if self.means_before:
                    self.compare_means()
                if self.made["status"]:
                    break
                if distributed.rank() == 0:
                    show(self.step, self.train_loss, self.units, self.times)
                stop = stopped()
                if stop or (self.step % every == 0 and self.step < self.steps):
                    self.save(curve)
                if stop:
                    distributed.tell(
                        f"{self.label}: stopped at step {self.step}, checkpoint written; the same command continues"
                    )
                    raise SystemExit(143)
        self.finish()

    def one_step(self, curve) -> None:
        """One update and its line in the curve; sets the record's status when loss or gradient is not finite."""
        started = time.perf_counter()
        number = self.step + 1
        train_loss, norm, wrong = self.updates.make(number)
        self.step, self.train_loss, self.gradient_bytes = number, train_loss, self.updates.gradient_bytes
        if wrong:
            self.diverge(wrong)
        self.seconds += time.perf_counter() - started
        self.times.append(time.perf_counter() - started)
        at_end = number == self.steps and not self.made["status"]
        every = self.settings.get("eval_every")
        val = self.evaluate() if at_end or (every and number % every == 0 and not self.made["status"]) else {}
        if val and self.settings.get("sketch"):
            val = {**val, "sketch": sketch(self.model, self.settings["sketch"])}
        self.unlogged.append(train_loss)
        if val or number % self.settings.get("log_every", 1) == 0 or number == self.steps or self.made["status"]:
            mean = sum(self.unlogged) / len(self.unlogged)  # a line covers all steps since the previous one
            self.unlogged = []
            self.write(curve, number, train_loss=mean, grad_norm=norm, lr=self.optimizer.param_groups[0]["lr"], **val)

    def compile(self) -> None:
        """Compile what training steps run (evaluations come in other shapes, each of which would be compiled anew)."""
        reason = machine.compiler_trouble(self.device)
        self.made["device"]["compiled"] = reason is None
        if reason:
            distributed.tell(
                f"{self.label}: train.compile: true, but torch.compile fails here ({reason}); going on without"
            )
        else:
            self.updates.compile()

    def evaluate(self) -> dict[str, float]:
        """Numbers on the validation set; keeps the best and notices divergence."""
        self.model.eval()
        with torch.no_grad(), self.updates.autocast():
            self.val = self.task.evaluate(self.model)
        if self.many:  # every rank evaluated everything; the mean makes them agree to the last bit
            self.val = {key: distributed.mean(value) for key, value in self.val.items()}
        self.model.train()
        loss = self.val["val_loss"]
        if not math.isfinite(loss):
            self.diverge("validation loss")
        elif self.best is None or loss < self.best["val_loss"]:
            self.best = self.metrics()
        return self.val

    def metrics(self) -> dict:
        """Training loss, the last evaluation and how much data was seen so far."""
        seen = {"step": self.step, f"{self.task.unit}s": self.step * self.units}
        return {"train_loss": self.train_loss, **self.val, **seen}

    def diverge(self, what: str) -> None:
        """End the run as diverged: `what` (a loss or a norm) is not finite."""
        self.made.update(status="diverged", reason=f"{what} is not finite at step {self.step}")
        self.val = dict.fromkeys(self.val)  # the last evaluation was of earlier weights

    def write(self, curve, step: int, **columns) -> None:
        """One line of curve.jsonl; a non-finite number is null."""
        line = {"step": step, f"{self.task.unit}s": step * self.units, **columns, "seconds": round(self.seconds, 4)}
        text = json.dumps(record.nan_to_null(line)) + "\n"
        self.curve_hash.update(text.encode())
        curve.write(text)
        curve.flush()

    def save(self, curve) -> None:
        """Checkpoint after the current step; the curve goes to disk first, as the checkpoint names its length."""
        length = 0
        if distributed.rank() == 0:  # the others write no curve
            os.fsync(curve.fileno())
            length = os.fstat(curve.fileno()).st_size
        notes = {key: getattr(self, key) for key in KEPT}
        notes |= {"curve_bytes": length, "curve_sha256": self.curve_hash.hexdigest(), "means": self.means()}
        notes |= {key: self.made[key] for key in ("resumed_from", "other_means")} | {
            "files": self.made["code"]["files"]
        }
        if self.many:
            from lowmem.training import sharded_checkpoint

            sharded_checkpoint.save(self.path, self.step, self.model, self.optimizer, notes)
            return
        state = {
            "notes": notes,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.device == "cuda" else None,
        }
        checkpoint.save(self.path, self.step, state)

    def resume(self) -> None:
        """Continue from the checkpoint if there is one of this code and data; cut the curve to its length."""
        if self.many:
            from lowmem.training import sharded_checkpoint

            notes = sharded_checkpoint.peek(self.path)
        else:
            state = checkpoint.load(self.path)
            notes = (state or {}).get("notes")
        curve = self.folder / "curve.jsonl"
        stale = not notes or notes["files"] != self.made["code"]["files"] or not self.is_curve_of(notes, curve)
        if distributed.any_rank(stale) if self.many else stale:
            if distributed.rank() == 0:
                if notes:
                    say(f"{self.label}: code, data or curve changed since the checkpoint; starting over")
                curve.unlink(missing_ok=True)
                self.curve_hash = hashlib.sha256()
            return
        if self.many:
            sharded_checkpoint.load(self.path, self.model, self.optimizer)
        else:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
            if self.device == "cuda":
                torch.cuda.set_rng_state(state["cuda_rng"])
        for key in KEPT:
            setattr(self, key, notes[key])
        self.updates.gradient_bytes = self.gradient_bytes
        if distributed.rank() == 0:
            os.truncate(curve, notes["curve_bytes"])
        self.made["resumed_from"] = [*notes["resumed_from"], self.step]
        on = f" on {distributed.world()} devices" if self.many else ""
        distributed.tell(f"{self.label}: continuing from step {self.step}{on}")
        self.made["other_means"], self.means_before = notes["other_means"], notes["means"]

    def means(self) -> dict:
        """What computes the updates: if any of these changes, so may the last digits of a result."""
        known = {key: self.made["device"][key] for key in ("type", "name", "threads")}
        return {"torch": self.made["packages"]["torch"], **known, "kernel": step_kernel(self.optimizer)}

    def compare_means(self) -> None:
        """After the first step since a checkpoint: report, also in the record, if other kernels compute than before it."""
        before, self.means_before = self.means_before, None
        changed = {key: [before[key], value] for key, value in self.means().items() if before[key] != value}
        if changed:
            self.made["other_means"] = [*self.made["other_means"], {"step": self.step - 1, **changed}]
            differences = "; ".join(
                f"{key} {was or 'PyTorch'}, now {new or 'PyTorch'}" for key, (was, new) in changed.items()
            )
            distributed.tell(f"{self.label}: computed by other means, so the last digits may differ: {differences}")

    def is_curve_of(self, notes: dict, curve: Path) -> bool:
        """Whether the curve begins with the lines that the checkpoint covers; continues from their hash."""
        if distributed.rank():  # the others write none
            return True
        length, hashed = notes["curve_bytes"], hashlib.sha256()
        if not curve.is_file() or curve.stat().st_size < length:
            return False
        with open(curve, "rb") as file:
            hashed.update(file.read(length))
        self.curve_hash = hashed
        return hashed.hexdigest() == notes["curve_sha256"]

    def finish(self) -> None:
        """Close the run: final metrics, arrays and status in what becomes the record."""
        self.made["status"] = self.made["status"] or "done"
        final, arrays = self.metrics(), None
        if self.task.finish and self.made["status"] == "done":
            self.model.eval()
            with torch.no_grad(), self.updates.autocast():
                found, arrays = self.task.finish(self.model)
            final |= found
        if self.many:
            self.model.reshard()  # evaluation leaves the last weights gathered
        self.made["metrics"] = {"final": final, "best": self.best or {}}
        if distributed.rank() == 0:
            self.made["arrays"] = record.write_arrays(self.folder, arrays)
            self.made["curve"] = {"sha256": self.curve_hash.hexdigest()}
        if self.keeps_weights and self.made["status"] == "done":
            self.keep_weights()
        self.made["throughput"] = usage.throughput(self.times, self.units, self.task.unit)
        if self.made["throughput"]:
            self.made["throughput"]["steps_s"] = round(sum(self.times), 3)
        self.made["memory"] = usage.memory(self.model, self.optimizer, self.gradient_bytes, self.device)

    def keep_weights(self) -> None:
        """The final weights beside the record, for runs that start from them; tied ones once."""
        if self.many:
            from lowmem.training import fsdp

            state = fsdp.whole(self.model)
        else:
            state = self.model.state_dict()
        if distributed.rank() == 0:
            names = [name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers()) if name in state]
            tensors = {name: state[name].contiguous() for name in names}
            self.made["weights"] = record.write_weights(self.folder, tensors)
