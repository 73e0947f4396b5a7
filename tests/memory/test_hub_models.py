"""Models from a configuration: planned, or refused in one line for a true reason, and nothing of theirs is run."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from synthetic import ROOT

from lowmem import cli
from lowmem.errors import Misuse
from lowmem.memory import target_model
from lowmem.memory.accountant import estimate_memory
from lowmem.memory.cell import TrainingSetup
from lowmem.models import _hub

LLAMA = dict(
    model_type="llama", hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=3, vocab_size=50,
    max_position_embeddings=32,
)  # fmt: skip
FAMILIES = {
    "gptj": dict(n_embd=32, n_head=4, n_layer=3, rotary_dim=4, n_positions=32, vocab_size=50),
    "bloom": dict(hidden_size=32, n_head=4, n_layer=3, vocab_size=50),
    "mpt": dict(d_model=32, n_heads=4, n_layers=3, vocab_size=50, max_seq_len=32),
    "gemma2": {**LLAMA, "head_dim": 8, "num_key_value_heads": 2},
    "bart": dict(
        d_model=32, decoder_layers=3, encoder_layers=2, decoder_attention_heads=4, encoder_attention_heads=4,
        decoder_ffn_dim=32, encoder_ffn_dim=32, vocab_size=50, max_position_embeddings=32,
    ),
    "bamba": {**LLAMA, "num_key_value_heads": 2, "mamba_n_heads": 8, "mamba_d_head": 8},
    "mistral": {**LLAMA, "num_key_value_heads": 2},
}  # fmt: skip


def folder(tmp_path, **config) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_families_are_built_at_any_depth_with_or_without_fused_attention(family, tmp_path):
    model = target_model.find(folder(tmp_path, **{**FAMILIES[family], "model_type": family}))
    assert model.depth == 3 and model.vocab_size == 50
    assert model.fused == (family in ("bart", "bamba", "mistral"))
    for depth in (1, 2, 3):
        built = model.build(depth, "fused")
        assert len(model.layers(built)) == depth
        assert all(p.is_meta for p in built.parameters())


DEEPSEEK = dict(
    model_type="deepseek_v3", hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_attention_heads=4,
    num_key_value_heads=4, num_hidden_layers=9, first_k_dense_replace=2, n_routed_experts=8, num_experts_per_tok=2, n_group=2,
    topk_group=1, q_lora_rank=16, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6, vocab_size=50,
    max_position_embeddings=32,
)  # fmt: skip


def test_layers_that_open_a_model_do_not_stand_for_all_of_it_and_values_may_be_shorter_than_queries(tmp_path):
    """DeepSeek's first layers have no experts; taken for the others, 671 B parameters once needed 300 GB instead of 5,370."""
    model = target_model.find(folder(tmp_path, **DEEPSEEK))
    assert (model.lead, model.period) == (2, 1)
    cell = TrainingSetup(optimizer={"name": "adamw"}, batch=2, seq_len=16)
    few, all_of_it = estimate_memory(model, cell), estimate_memory(model, cell, full_depth=True)
    assert few.depths == (4, 5) and few.peak == pytest.approx(all_of_it.peak, rel=0.005)
    assert few.most["optimizer_state"] == 4 * model.parameters() == all_of_it.most["optimizer_state"]


def test_what_is_left_beside_the_two_traced_models_is_whole_periods(tmp_path):
    """Two kinds of layers in turn, eleven layers: the smaller model has an odd number of them."""
    config = {**FAMILIES["gemma2"], "num_hidden_layers": 11, "model_type": "gemma2"}
    model = target_model.find(folder(tmp_path, **config))
    cell = TrainingSetup(optimizer={"name": "adamw"}, batch=2, seq_len=16, attention="eager")
    few, all_of_it = estimate_memory(model, cell), estimate_memory(model, cell, full_depth=True)
    assert model.period == 2 and few.depths == (5, 7)
    assert few.peak == pytest.approx(all_of_it.peak, rel=0.005)


def test_a_model_without_fused_attention_is_planned_with_eager_and_says_so(tmp_path, capsys):
    name = folder(tmp_path, **{**FAMILIES["bloom"], "model_type": "bloom"})
    assert cli.main(["plan", name, "--seq-len", "8", "--optimizer", "lomo"]) == 0
    assert "eager attention (it has no fused one)" in capsys.readouterr().out


BROKEN = [
    dict(num_attention_heads=0), dict(num_key_value_heads=0), dict(num_hidden_layers=0), dict(num_hidden_layers=None),
    dict(num_hidden_layers="4"), dict(num_hidden_layers=4.0), dict(num_hidden_layers=100000), dict(hidden_size=63),
    dict(hidden_size="64"), dict(hidden_size=64.0), dict(vocab_size=0), dict(vocab_size=1000.5),
    dict(max_position_embeddings=None), dict(hidden_act="sillu"), dict(torch_dtype="bfloat17"), dict(rope_scaling="yes"),
    dict(tie_word_embeddings="maybe"), dict(model_type="nothing"), dict(num_attention_heads=-4),
]  # fmt: skip


def test_a_name_of_the_hub_without_a_network_is_one_line_at_once(tmp_path):
    with socket.socket() as taken:  # a port of which nobody knows; nobody listens
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        environment = {**os.environ, "HF_ENDPOINT": closed, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
        environment.pop("HF_HUB_OFFLINE", None)
        start, command = time.monotonic(), [sys.executable, "-m", "lowmem", "plan", "openai/gpt-oss-20b"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "not in the cache" in done.stderr and closed in done.stderr and "Retry" not in done.stderr
    assert time.monotonic() - start < 60  # mostly imports


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda address, timeout: asked.append(timeout) or 1 / 0)
    with pytest.raises(Misuse, match="cannot be reached: division by zero"):
        _hub.config_of("some/model")
    assert asked == [_hub.SECONDS]


@pytest.mark.parametrize("command", ["plan", "blocks"])
@pytest.mark.parametrize("wrong", BROKEN, ids=str)
def test_a_malformed_configuration_is_one_line(command, wrong, tmp_path, capsys):
    name = folder(tmp_path, **{**LLAMA, **wrong})
    assert cli.main([command, name]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"lowmem: model {name}: ") and line.count("\n") == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"], ids=repr)
def test_a_file_that_is_no_configuration_is_one_line(text, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    assert cli.main(["blocks", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_models_own_code_is_not_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115
    for kind in ("strange", "llama"):
        name = folder(tmp_path, **{**LLAMA, "model_type": kind, "auto_map": {"AutoConfig": "own.Own"}})
        cli.main(["blocks", name])
        assert not (tmp_path / "ran").exists()
    with pytest.raises(Misuse, match="code of its own, which is not run"):
        _hub.config_of(folder(tmp_path, model_type="strange", auto_map={"AutoConfig": "own.Own"}))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--batch", "0"], "--batch: 0: at least 1"),
        (["--batch", "-1"], "--batch: -1: at least 1"),
        (["--seq-len", "0"], "--seq-len: 0: at least 1"),
        (["--gpus", "100000"], "gpus 100000: at most 4096"),
        (["--gpu", "A100"], "'A100': which one, a100-40gb or a100-80gb"),
        (["--optimizer", "adamm"], "unknown optimizer 'adamm'"),
        (["--precision", "fp8"], "precision 'fp8'"),
        (["--attention", "flash"], "attention 'flash'"),
        (["--zero", "4"], "zero 4"),
        (["--gpus", "6", "--tensor-parallel", "4"], "tensor-parallel 4 does not divide 6 GPUs"),
    ],
)
def test_arguments_are_looked_at_before_anything_is_built(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(target_model, "find", lambda _: pytest.fail("built a model first"))
    assert cli.main(["plan", "llama2-7b", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_batch_that_ends_the_search_is_not_sold_as_the_gpus_limit(capsys):
    settings = ["--seq-len", "8", "--optimizer", "sgd", "--gpu", "h200-141gb"]
    assert cli.main(["plan", "gpt2:125m", *settings, "--batch", "5000"]) == 0
    assert cli.main(["plan", "gpt2:125m", *settings, "--batch", "5000000"]) == 2
    assert "--batch 4096 fits" in capsys.readouterr().err


def test_names_of_files_and_whole_suggestions(capsys):
    assert target_model.find("gpt2").name == "gpt2"
    assert cli.main(["plan", "gpt2:125n"]) == 2
    assert "did you mean 'gpt2:125m'" in capsys.readouterr().err
