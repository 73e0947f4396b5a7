"""The example of fine-tuning on one small card, by the same code on a tiny model."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from run_example import ROOT, losses
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytestmark = pytest.mark.slow


@pytest.fixture
def given(tmp_path) -> tuple[str, str]:
    """(folder of a tiny Llama with a tokenizer of letters, a file of text)."""
    letters = {letter: i for i, letter in enumerate("abcdefgh")}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    shape = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    LlamaForCausalLM(LlamaConfig(vocab_size=8, max_position_embeddings=64, **shape)).save_pretrained(tmp_path / "model")
    (tmp_path / "text").write_text("abcdefgh" * 200)
    return str(tmp_path / "model"), str(tmp_path / "text")


def last(folder: Path) -> tuple[dict, dict]:
    """(weights, training state) of the only checkpoint in a folder."""
    (found,) = folder.iterdir()
    return load_file(found / "model.safetensors"), torch.load(found / "training.pt", weights_only=True)


def here(capsys, monkeypatch, *arguments: str) -> list[float]:
    """Losses of the script in this process, which has imported what takes longest."""
    monkeypatch.setattr(sys, "argv", ["finetune_7b_24gb.py", *arguments])
    runpy.run_path(str(ROOT / "examples/finetune_7b_24gb.py"))
    return [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]


def test_it_goes_on_after_an_interruption_as_if_there_was_none(given, tmp_path, capsys, monkeypatch):
    whole = here(capsys, monkeypatch, *given, str(tmp_path / "whole"), "6", "32")
    first = here(capsys, monkeypatch, *given, str(tmp_path / "parts"), "3", "32")
    then = losses("finetune_7b_24gb.py", *given, str(tmp_path / "parts"), "6", "32")
    assert first + then == whole and len(whole) == 6
    (weights, training), (expected, known) = last(tmp_path / "parts"), last(tmp_path / "whole")
    assert training["step"] == known["step"] == 6
    assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in expected)
    found, state = training["optimizer"]["state"], known["optimizer"]["state"]
    assert found.keys() == state.keys() and all(found[i].keys() == state[i].keys() for i in state)
    assert all(torch.equal(found[i][key], value) for i in state for key, value in state[i].items())
    assert {entry["exp_avg"].dtype for entry in state.values()} == {torch.int8}
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    start = load_file(Path(given[0]) / "model.safetensors")
    assert any(not torch.equal(start[key].bfloat16(), weight) for key, weight in weights.items())


def test_a_text_shorter_than_a_step_is_refused_in_one_line(given, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit, match=r"text has 1600 tokens and a step takes 1601: .* fewer TOKENS$"):
        here(capsys, monkeypatch, *given, str(tmp_path / "run"), "1", "1601")
    assert not (tmp_path / "run").exists()
