"""What `lowmem plan MODEL` says: adapters and other people's optimizers, its forms, and its first sign of life."""

import json
import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from synthetic import ROOT
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem import cli
from lowmem.errors import Misuse
from lowmem.memory import (
    calibration,
    fake_kernels,
    hardware,
    model_names,
    plan_asked,
    plan_command,
    plan_text,
    target_model,
    throughput,
    training_cells,
)
from lowmem.memory.accountant import estimate_memory
from lowmem.memory.cell import TrainingSetup, check_settings
from lowmem.memory.tracker import Tracker

PLAN = ["plan", "llama:20m", "--gpu", "t4", "--seq-len", "64"]
SCHEMA = json.loads((ROOT / "src/lowmem/memory/plan.schema.json").read_text(encoding="utf-8"))


def answer(capsys, *arguments: str) -> str:
    assert cli.main([*PLAN, *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("gpu", ["t4", "a100-80gb"])
def test_json_is_what_its_schema_says(capsys, gpu):
    assert (
        cli.main(["plan", "gpt2:1.5b" if gpu == "t4" else "llama:20m", "--gpu", gpu, "--seq-len", "16", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, SCHEMA)
    assert {row["fits"] for row in found["optimizers"].values()} == ({True, False} if gpu == "t4" else {True})


def test_the_schema_names_every_key_that_is_written(capsys):
    found = json.loads(answer(capsys, "--optimizer", "lomo", "--json"))
    assert found.keys() == SCHEMA["properties"].keys()
    memory = SCHEMA["$defs"]["memory"]["properties"].keys()
    row = found["optimizers"]["lomo"]
    assert row.keys() == SCHEMA["$defs"]["plan"]["properties"].keys() and row["one_sequence"].keys() == memory
    largest = SCHEMA["$defs"]["plan"]["properties"]["largest"]["anyOf"][1]["properties"].keys()
    assert row["largest"].keys() == memory | largest


@pytest.mark.slow
def test_lora_over_packed_weights_needs_less_and_says_so(capsys):
    text = answer(capsys, "--lora", "8", "--base", "nf4-dq", "--targets", "wq,wv")
    assert "LoRA of rank 8 on wq, wv, base weights frozen in 4-bit (nf4-dq)" in text
    lora = json.loads(answer(capsys, "--lora", "8", "--base", "nf4-dq", "--json"))["optimizers"]["adamw"]
    full = json.loads(answer(capsys, "--precision", "bf16", "--optimizer", "adamw", "--json"))["optimizers"]["adamw"]
    assert lora["one_sequence"]["peak_bytes"] < 0.6 * full["one_sequence"]["peak_bytes"]


@pytest.mark.slow
def test_the_table_of_all_optimizers_for_7b_on_24_gb_is_what_its_command_says(capsys):
    page = (ROOT / "docs/planner_7b_24gb.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^lowmem (plan .*)$", page, re.MULTILINE)
    assert cli.main(command.split()) == 0
    assert page.endswith(capsys.readouterr().out)
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 32 and len({row[0] for row in rows}) == len(rows)
    fits = {row[0] for row in rows if "none" not in row}
    assert "adam_mini+int8+backward" in fits and not {"adamw", "adam_mini", "adamw8bit", "ao_adamw4bit"} & fits


@pytest.mark.parametrize(("precision", "count"), [("bf16", 32), ("mixed", 26), ("master", 8)])
def test_all_optimizers_are_those_that_fit_the_precision(precision, count):
    found = plan_asked.every(TrainingSetup(optimizer={}, precision=precision))
    assert len(found) == len(set(found)) == count
    for name in found:
        check_settings(TrainingSetup(optimizer=plan_command.optimizer_settings(name), precision=precision))


@pytest.mark.slow
def test_optimizers_of_other_packages_are_planned_beside_ours(capsys):
    found = json.loads(answer(capsys, "--optimizer", "adamw8bit", "--optimizer", "paged_adamw8bit", "--json"))
    states = {name: row["one_sequence"]["most"]["optimizer_state"] for name, row in found["optimizers"].items()}
    assert states["adamw8bit"] < 0.3 * states["adamw"] and states["paged_adamw8bit"] == 0


def traced(**settings):
    cell = TrainingSetup(optimizer={"name": "adamw"}, seq_len=128, **settings)
    model = target_model.find({"name": "llama", "n_layer": 6, "n_head": 2, "n_embd": 64, "vocab_size": 256})
    return cell, estimate_memory(model, cell)


def test_accumulation_counts_the_tokens_of_all_its_batches():
    once, often = (
        throughput.speed(found.work, cell, hardware.find("t4"))
        for cell, found in (traced(accumulate=1), traced(accumulate=8))
    )
    assert often.tokens_per_s == pytest.approx(8 * 128 / often.seconds) and often.seconds > 7 * once.seconds
    assert often.stages["forward"] == pytest.approx(8 * once.stages["forward"], rel=0.01)


@pytest.mark.parametrize(("name", "low", "high"), [("adam_mini+int8", 1.015, 1.1), ("lion+int8+backward", 1.015, 1.02)])
def test_a_first_moment_in_eight_bits_takes_a_byte_and_its_scales(name, low, high):
    model = target_model.find({"name": "llama", "n_layer": 2, "n_head": 2, "n_embd": 128, "vocab_size": 256})
    found = estimate_memory(
        model, TrainingSetup(optimizer=plan_command.optimizer_settings(name), seq_len=16), full_depth=True
    )
    assert low < found.most["optimizer_state"] / model.parameters() < high


def test_state_is_for_every_optimizer_that_has_it_and_for_weights_in_bf16(capsys):
    names = ["adam_mini", "adam_mini+backward", "lion+int8"]
    asked = [word for name in names for word in ("--optimizer", name)]
    found = json.loads(answer(capsys, *asked, "--state", "int8", "--json"))
    assert list(found["optimizers"]) == ["adamw", "adam_mini+int8", "adam_mini+int8+backward", "lion+int8"]
    weights = [row["one_sequence"]["most"]["parameters"] for row in found["optimizers"].values()]
    assert weights == [pytest.approx(2 * target_model.find("llama:20m").parameters(), rel=0.05)] * 4
    cell = TrainingSetup(optimizer={})
    assert plan_asked.usual(cell, "int8") == ["adamw+int8", "adam_mini+int8", "lomo"]
    assert plan_asked.usual(cell, None) == ["adamw", "adam_mini", "lomo"]


def test_every_plan_in_the_documentation_has_a_row_under_its_head():
    text = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    below = [
        re.match(r"optimizer +peak .*\n(.*)", text[at.start() :])[1]
        for at in re.finditer(r"^optimizer +peak ", text, re.M)
    ]
    assert len(below) >= 2 and all(re.match(r"\w+ +[\d.]+ ", line) for line in below), below


INSIDE = "--precision bf16 --checkpointing --optimizer"


@pytest.mark.parametrize(
    ("asked", "fits", "says"),
    [
        ("adam_mini", ["lomo", "adam_mini+int8+backward"], f"{INSIDE} adam_mini+backward --state int8"),
        ("adam_mini", ["adam_mini+backward", "adam_mini+int8+backward"], f"{INSIDE} adam_mini+backward"),
        ("lion+int8", ["lomo", "lion+backward", "lion+int8+backward"], f"{INSIDE} lion+backward --state int8"),
        ("adafactor", ["lomo", "adafactor+backward"], f"{INSIDE} adafactor+backward"),
        ("adamw8bit", ["adam_mini+backward", "lomo"], f"{INSIDE} lomo"),
        ("lomo", ["adam_mini+backward"], f"{INSIDE} adam_mini+backward"),
    ],
)
def test_advice_tries_the_optimizer_asked_for_before_another(asked, fits, says, monkeypatch):
    small = [plan_command.optimizer_settings(name) for name in fits]

    def need(_, cell):
        return SimpleNamespace(peak=0 if cell.optimizer in small and cell.checkpointing else 1e15)

    monkeypatch.setattr(plan_command, "estimate_memory", need)
    cell, gpu = TrainingSetup(optimizer={}, precision="mixed"), hardware.find("rtx-4090")
    assert plan_command.advice(None, cell, gpu, asked) == f"one sequence fits with {says}"


def test_every_second_layer_recomputed_keeps_half_of_what_recomputing_saves():
    none, some, every = (
        traced(**flags)[1].kept
        for flags in ({}, {"checkpointing": True, "checkpoint_every": 2}, {"checkpointing": True})
    )
    assert some == pytest.approx((none + every) / 2, rel=0.02)


def test_markdown_holds_one_table_with_the_columns_that_explain_explains(capsys):
    lines = answer(capsys, "--optimizer", "adamw", "--markdown").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and table[1].startswith("|---|")
    columns = [cell.strip() for cell in table[0].strip("|").split("|")]
    assert cli.main(["plan", "--explain"]) == 0
    explained = capsys.readouterr().out.splitlines()
    assert len(explained) == len(columns) == len(plan_text.COLUMNS)
    assert all(line.startswith(f"{name} ") for name, line in zip(columns, explained))


def test_the_errors_that_are_printed_are_those_of_the_cells_held_out():
    found = training_cells.summary(training_cells.read(ROOT))["held out"]
    assert (round(found["median"], 1), round(found["worst"], 1)) == calibration.ERRORS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--base", "nf4"], "--base needs --lora RANK"),
        (["--fsdp1"], "--fsdp1 needs --lora RANK"),
        (["--lora", "8", "--base", "nf5"], "did you mean 'nf4'"),
        (["--lora", "8", "--targets", "q_proj"], "no linear layer is called 'q_proj'"),
        (["--lora", "0"], "at least 1"),
        (["--optimizer", "adamw8bits"], "did you mean 'adamw8bit'"),
        (["--optimizer", "adamw8bit+backward"], "not simulated inside backward"),
        (["--optimizer", "sgd+int8"], "drop +int8"),
        (["--optimizer", "lomo", "--state", "int8"], "drop +int8, or --state int8"),
        (["--state", "int4"], "'int4'"),
        (["--optimizer", "ao_adamw_offload"], "steps it on the CPU, whose speed is not modelled"),
        (["--optimizer", "ao_adamw8bit+backward"], "not simulated inside backward"),
        (["--accumulate", "4", "--optimizer", "lomo"], "one batch per step"),
        (["--checkpoint-every", "2"], "needs --checkpointing"),
        (["--checkpointing", "--checkpoint-every", "5"], "20m has 4 layers"),
        (["--lora", "8", "--targets", "wq,wz"], "no linear layer is called 'wz' (choose from: down, "),
        (["--lora", "8", "--targets", ""], "no linear layer is called ''"),
        (["--lora", "8", "--base", ""], "base ''"),
        (["--base", ""], "--base needs --lora RANK"),
        (["--precision", ""], "precision ''"),
        (["--batch", f"1{'0' * 30}"], "at most 1,000,000,000 tokens per GPU"),
        (["--accumulate", "1000001"], "and 1,000,000 batches"),
        (["--optimizer", "adamw+int8+int8"], "each once"),
        (["--optimizer", "adamw+upwards"], "each once"),
        (["--document-tokens", "65"], "longer than the sequence they are packed into, 64"),
        (["--document-tokens", "0"], "at least 1"),
        (["--expert-parallel", "8"], "expert-parallel 8: must divide the 1 data-parallel GPUs"),
        (["--pipeline-parallel", "99"], "--pipeline-parallel: not traced"),
        (["--context-parallel", "x"], "--context-parallel: not traced"),
        (["--json", "--markdown"], "not allowed with"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, arguments, says):
    assert cli.main([*PLAN, *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "the name of the model is empty"),
        ("{}", "no config.json in this folder"),
        ("{}/gone", "there is no such folder"),
        ("../no/such", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line_without_a_question_to_the_hub(name, says, tmp_path, capsys):
    assert cli.main(["plan", name.format(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_suffixes_of_an_optimizer_come_in_any_order():
    assert plan_command.optimizer_settings("lion+backward+int8") == plan_command.optimizer_settings(
        "lion+int8+backward"
    )


def test_packed_documents_shorten_attention_and_keep_the_tensors_of_the_fused_kernel():
    whole, packed = (traced(document=n)[1] for n in (None, 32))
    assert packed.peak == whole.peak and packed.phases == whole.phases
    # layers, batch, heads, tokens, keys no longer seen, size; half are masked
    pairs = 6 * 1 * 2 * 128 * (128 - 32) * 32 / 2
    assert whole.work.operations("forward") - packed.work.operations("forward") == pytest.approx(2 * 2 * pairs)
    assert whole.work.operations("backward") - packed.work.operations("backward") == pytest.approx(5 * 2 * pairs)


def test_without_a_fused_kernel_each_sequence_of_packed_documents_has_its_own_mask():
    q = torch.zeros(3, 2, 64, 16, dtype=torch.bfloat16)
    peaks = []
    for packed in (False, True):
        with Tracker() as tracker, tracker.during("forward", "activations"):
            fake_kernels.eager(q, q, q, packed)
        peaks.append(tracker.peaks["forward"]["activations"])
    assert peaks[1] - peaks[0] == 2 * 64 * 64 * 2  # two more masks in 16 bits


def test_what_no_model_could_have_is_refused_without_pytorch():
    wrong = [
        ["no-such-model"],
        ["no/such/model"],
        ["llama2-7b", "--gpu", "no-such-gpu"],
        ["llama2-7b", "--optimizer", "adamm"],
        ["llama2-7b", "--gpus", "6", "--tensor-parallel", "4"],
        ["llama2-7b", "--gpus", "8", "--expert-parallel", "3"],
        ["llama2-7b", "--lora", "8", "--base", "nf5"],
    ]
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # to import it is an error
        "from lowmem import cli\n"
        f"sys.exit(any(cli.main(['plan', *words]) != 2 for words in {wrong}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0 and done.stderr.count("\n") == len(wrong), done.stderr
    assert "torch" not in done.stderr


def test_names_read_off_the_models_files_are_those_they_have():
    from lowmem.models import gpt2, llama

    assert model_names.sizes() == {**dict.fromkeys(llama.SIZES, "llama"), **dict.fromkeys(gpt2.SIZES, "gpt2")}


def test_on_a_terminal_something_is_said_before_pytorch_is_loaded(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    code = (
        "import sys\n"
        "class Seen:\n"
        "    def __init__(self, to): self.to = to\n"
        "    def write(self, text): self.to.write(f'{\"torch\" in sys.modules} {text}' if text.strip() else text)\n"
        "    def flush(self): self.to.flush()\n"
        "    def isatty(self): return self.to.isatty()\n"
        "sys.stderr = Seen(sys.stderr)\n"
        "from lowmem import cli\n"
        f"sys.exit(cli.main(['plan', {str(tmp_path)!r}]))\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment, timeout=120)
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert done.returncode == 2 and said.startswith(f"False lowmem: planning {tmp_path} ...")


def test_a_step_that_cannot_be_traced_is_one_line_without_the_tracer_s_own(monkeypatch, caplog):
    def step(*_):
        with FakeTensorMode():
            return torch.empty(2, 3) @ torch.empty(2, 3)

    monkeypatch.setattr("lowmem.memory.model_names.is_hub", lambda name: True)
    monkeypatch.setattr("lowmem.memory.target_model.find", lambda name: None)
    monkeypatch.setattr("lowmem.memory.throughput.plan", step)
    with pytest.raises(Misuse, match=r"model some/model: a step of it cannot be traced: RuntimeError: .*") as caught:
        plan_command.one_plan("some/model", None, None)
    assert "\n" not in str(caught.value) and not caplog.records
    with pytest.raises(RuntimeError):
        step()
    assert caplog.records  # so there was something to keep quiet


def test_columns_stay_apart_and_no_warning_precedes_a_refusal(capfd):
    asked = ["plan", "llama:20m", "--gpu", "t4", "--seq-len", "64", "--optimizer", "adamw"]
    assert cli.main([*asked, "--gpus", "64"]) == 0
    assert re.search(r" \d+\.\d +[\d,]{7,}-[\d,]{7,} ", capfd.readouterr().out)
    assert cli.main([*asked[:-1], "lomo", "--zero", "1", "--gpus", "2"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_convolutions_are_no_experts():
    class Layered:
        lead, period = 0, 1

        def __init__(self, layer):
            self.layer = layer

        def build(self, depth, attention):
            return self.layer

    assert not plan_text.experts(Layered(nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Linear(4, 4))))
    stacked = nn.Module()
    stacked.up = nn.Parameter(torch.zeros(8, 4, 4))
    assert plan_text.experts(Layered(stacked))
