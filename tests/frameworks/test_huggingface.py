"""Hugging Face Trainer, Accelerate and PEFT with the real packages: equal to a loop written by hand, saved, resumed."""

import os
import types

import pytest
import ranks
import torch
import torch.distributed as dist
import zoo
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lowmem.integrations.huggingface import FusedTrainer, check_settings
from lowmem.optim import SGD, AdaLomo, AdamMini, FusedBackward, Lomo

pytestmark = pytest.mark.slow

STEPS, BATCH = 4, 4
DATA = [{"input_ids": (ids := (torch.arange(9) * k + k) % 16), "labels": ids} for k in range(STEPS * BATCH)]


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, max_position_embeddings=16, num_key_value_heads=1, **shape))


def lora(seed: int = 0) -> nn.Module:
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.0)
    return get_peft_model(llama(seed), settings)


def in_order(cls):
    """A Trainer class that goes through the data from start to end."""

    class InOrder(cls):
        def _get_train_sampler(self, *_arguments):
            return torch.utils.data.SequentialSampler(DATA)

    return InOrder


def arguments(folder, **changes) -> TrainingArguments:
    settings = dict(per_device_train_batch_size=BATCH, max_steps=STEPS, save_steps=2, report_to="none", use_cpu=True)
    settings |= dict(lr_scheduler_type="constant", disable_tqdm=True, learning_rate=1e-2, seed=1)
    return TrainingArguments(str(folder), **{**settings, **changes})


def by_hand(model: nn.Module, optimizer, clip: float = 1.0) -> dict[str, torch.Tensor]:
    for k in range(STEPS):
        ids = torch.stack([row["input_ids"] for row in DATA[k * BATCH : (k + 1) * BATCH]])
        model(input_ids=ids, labels=ids).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return zoo.snapshot(model)


def close(a: dict, b: dict, tolerance: float) -> bool:
    return a.keys() == b.keys() and max(float((a[k] - b[k]).abs().max()) for k in a) <= tolerance


class Builds(Trainer):
    def create_optimizer(self, model=None):
        self.optimizer = self.optimizer or AdamMini(model or self.model, lr=self.args.learning_rate)
        return self.optimizer


@pytest.mark.parametrize("make", [llama, lora])
def test_trainer_with_adam_mini_gives_the_weights_of_a_plain_loop(tmp_path, make):
    plain = make()
    expected = by_hand(plain, AdamMini(plain, lr=1e-2))
    for cls in (Trainer, Builds):
        model = make()
        ready = {} if cls is Builds else {"optimizers": (AdamMini(model, lr=1e-2), None)}
        trainer = in_order(cls)(model, arguments(tmp_path), train_dataset=DATA, **ready)
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        assert isinstance(optimizer, AdamMini)
        query = next(p for n, p in model.named_parameters() if "q_proj" in n and p.requires_grad)
        assert optimizer.blocks(query).kind == ("head" if make is llama else "neuron")
        assert close(zoo.snapshot(model), expected, 1e-6)


INSIDE = {
    "lomo": (lambda m: Lomo(m, lr=0.1, max_grad_norm=0.5), lambda m: SGD(m, lr=0.1)),
    "adam_mini": (lambda m: FusedBackward(AdamMini(m, lr=1e-2), max_grad_norm=0.5), lambda m: AdamMini(m, lr=1e-2)),
}


@pytest.mark.parametrize("make", [llama, lora])
@pytest.mark.parametrize("name", INSIDE)
def test_trainer_with_updates_inside_backward_gives_the_weights_of_a_plain_loop(tmp_path, make, name):
    inside, plain = INSIDE[name]
    alone, model = make(), make()
    expected = by_hand(alone, plain(alone), clip=0.5)
    args = arguments(tmp_path, max_grad_norm=0)
    trainer = in_order(FusedTrainer)(model, args, train_dataset=DATA, optimizers=(inside(model), None))
    trainer.train()
    assert close(zoo.snapshot(model), expected, 1e-6)
    assert all(p.grad is None for p in model.parameters())


def train_together(rank: int, world: int, folder: str) -> dict:
    os.environ.update(
        LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="29511"
    )
    alone, found = llama(), {}
    expected = by_hand(alone, SGD(alone, lr=0.1), clip=0.5)
    for name in ("lomo", "nobody averages"):
        model = llama()
        group = {"process_group": dist.group.WORLD} if name == "lomo" else {}
        optimizer = Lomo(model, lr=0.1, max_grad_norm=0.5, **group)
        args = arguments(
            f"{folder}/{name}", max_grad_norm=0, per_device_train_batch_size=BATCH // world, ddp_backend="gloo"
        )
        try:
            in_order(FusedTrainer)(model, args, train_dataset=DATA, optimizers=(optimizer, None)).train()
            found[name] = close(zoo.snapshot(model), expected, 1e-5)
        except RuntimeError as error:
            found[name] = str(error)
    return found


def test_lomo_in_trainers_on_two_processes_gives_the_weights_of_one(tmp_path):
    for found in ranks.launch(train_together, 2, str(tmp_path)):
        assert found["lomo"] is True, found
        assert "pass process_group=torch.distributed.group.WORLD" in found["nobody averages"]


BUILDS = {
    "adam_mini": (Trainer, lambda m: AdamMini(m, lr=1e-2), {}),
    "lomo": (FusedTrainer, lambda m: Lomo(m, lr=0.1, max_grad_norm=0.5), {"max_grad_norm": 0}),
    "adalomo": (FusedTrainer, lambda m: AdaLomo(m, lr=1e-2), {"max_grad_norm": 0}),
}


@pytest.mark.parametrize("name", BUILDS)
def test_trainer_resumes_from_its_checkpoint_to_the_same_weights(tmp_path, name):
    cls, build, settings = BUILDS[name]
    ends = []
    for seed, resume in ((0, None), (5, str(tmp_path / "checkpoint-2"))):
        model = llama(seed)
        args = arguments(tmp_path, **settings)
        trainer = in_order(cls)(model, args, train_dataset=DATA, optimizers=(build(model), None))
        trainer.train(resume_from_checkpoint=resume)
        ends.append(zoo.snapshot(model))
    assert zoo.same(*ends)


REFUSED = {
    "accumulation": ({"gradient_accumulation_steps": 2}, "cannot be accumulated; set it to 1"),
    "clipping": ({"max_grad_norm": 1.0}, "set max_grad_norm=0 in TrainingArguments"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_trainer_settings_that_cannot_work_inside_backward_are_refused(tmp_path, what):
    settings, message = REFUSED[what]
    model = llama()
    before = zoo.snapshot(model)
    args = arguments(tmp_path, **{"max_grad_norm": 0, **settings})
    trainer = FusedTrainer(model, args, train_dataset=DATA, optimizers=(Lomo(model, lr=0.1), None))
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert zoo.same(before, zoo.snapshot(model))


def test_half_precision_data_parallel_and_optimizers_with_step_are_refused():
    good = dict(gradient_accumulation_steps=1, max_grad_norm=0, fp16=False, n_gpu=1)
    lomo = Lomo(llama(), lr=0.1)
    check_settings(lomo, types.SimpleNamespace(**good))
    for changes, message in (
        ({"fp16": True}, "GradScaler.*loss_scale='dynamic'"),
        ({"n_gpu": 2}, "one process per GPU"),
    ):
        with pytest.raises(ValueError, match=message):
            check_settings(lomo, types.SimpleNamespace(**{**good, **changes}))
    with pytest.raises(ValueError, match=r"use transformers\.Trainer as it is"):
        check_settings(AdamMini(llama(), lr=0.1), types.SimpleNamespace(**good))


def test_the_plain_trainer_says_that_lomo_needs_its_own_backward(tmp_path):
    model = llama()
    trainer = Trainer(model, arguments(tmp_path), train_dataset=DATA, optimizers=(Lomo(model, lr=0.1), None))
    with pytest.raises(RuntimeError, match=r"Lomo owns the gradients; call opt\.backward"):
        trainer.train()


# -- Accelerate --------------------------------------------------------------------------------------------------------


def accelerated(accelerator, model, optimizer, steps: range) -> None:
    """Two micro-batches per step, clipped."""
    for k in steps:
        for half in range(2):
            rows = DATA[k * BATCH + half * 2 : k * BATCH + half * 2 + 2]
            ids = torch.stack([row["input_ids"] for row in rows])
            with accelerator.accumulate(model):
                accelerator.backward(model(input_ids=ids, labels=ids).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()


def test_accelerate_with_adam_mini_accumulates_clips_saves_and_resumes(tmp_path):
    plain = llama()
    expected = by_hand(plain, AdamMini(plain, lr=1e-2))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = llama()
    model, optimizer = accelerator.prepare(model, AdamMini(model, lr=1e-2))
    accelerated(accelerator, model, optimizer, range(2))
    accelerator.save_state(str(tmp_path))
    accelerated(accelerator, model, optimizer, range(2, STEPS))
    assert close(zoo.snapshot(model), expected, 1e-6)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    again = llama(5)
    again, optimizer = accelerator.prepare(again, AdamMini(again, lr=1e-2))
    accelerator.load_state(str(tmp_path))
    accelerated(accelerator, again, optimizer, range(2, STEPS))
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(again))


def test_accelerate_beside_lomo_clips_saves_and_resumes(tmp_path):
    plain = llama()
    expected = by_hand(plain, SGD(plain, lr=0.1), clip=0.5)
    accelerator = Accelerator(cpu=True)
    ends = []
    for resume in (False, True):
        model = accelerator.prepare(llama(5 if resume else 0))
        optimizer = Lomo(model, lr=0.1, max_grad_norm=0.5)
        if resume:
            model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
            optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
        for k in range(2 if resume else 0, STEPS):
            ids = torch.stack([row["input_ids"] for row in DATA[k * BATCH : (k + 1) * BATCH]])
            optimizer.backward(model(input_ids=ids, labels=ids).loss)
            optimizer.step()
            if k == 1:
                accelerator.save(model.state_dict(), tmp_path / "model.pt")
                accelerator.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        ends.append(zoo.snapshot(model))
    assert close(ends[0], expected, 1e-6)
    assert zoo.same(*ends)


def test_a_grad_scaler_with_lomo_is_refused_and_nothing_moves():
    model = llama()
    before = zoo.snapshot(model)
    optimizer = Lomo(model, lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    ids = torch.stack([row["input_ids"] for row in DATA[:2]])
    with pytest.raises(RuntimeError, match="loss_scale='dynamic' instead of a GradScaler"):
        scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
    assert zoo.same(before, zoo.snapshot(model)) and optimizer.param_groups


def test_parameters_that_accelerate_replaced_after_the_optimizer_was_built_are_reported():
    model = llama()
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare_optimizer(AdamMini(model, lr=1e-2))
    fresh = {p: nn.Parameter(p.detach().clone()) for p in model.parameters()}
    optimizer._switch_parameters(fresh)  # what Accelerate does after it has wrapped a model
    for p in fresh.values():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="a framework has replaced the parameters; build the optimizer after it"):
        optimizer.step()


# -- PEFT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam_mini", "lomo", "lomo clipped"])
def test_only_lora_adapters_move_and_as_by_hand(name):
    model, plain = lora(), lora()
    before = zoo.snapshot(model)
    clip = 0.5 if name == "lomo clipped" else 1e9
    build = {"adam_mini": lambda m: AdamMini(m, lr=1e-2)}.get(name, lambda m: SGD(m, lr=0.1))
    expected = by_hand(plain, build(plain), clip)
    if name == "adam_mini":
        assert zoo.same(by_hand(model, AdamMini(model, lr=1e-2), clip), expected)
    else:
        optimizer = Lomo(model, lr=0.1, max_grad_norm=0.5 if name == "lomo clipped" else None)
        for k in range(STEPS):
            ids = torch.stack([row["input_ids"] for row in DATA[k * BATCH : (k + 1) * BATCH]])
            optimizer.backward(model(input_ids=ids, labels=ids).loss)
            optimizer.step()
    after = zoo.snapshot(model)
    assert close(after, expected, 1e-6)
    moved = {n for n in after if not torch.equal(after[n], before[n])}
    assert moved and all("lora_" in n for n in moved)
