"""Checkpoints: what transformers computes, our Llama computes; damaged and foreign files end in one line."""

import json
import math

import gguf_file
import numpy as np
import pytest
import torch
import transformers

from lowmem import partition
from lowmem.data import prepare
from lowmem.errors import Failed, Misuse
from lowmem.pipeline.experiments import find_root
from lowmem.weights import pretrained
from lowmem.weights.gguf import Gguf

WORDS = ["a", "b", "c", "ab", "Ġa", "<|end|>", "Ġ"]
PARAGRAPH = (
    "The history of the city goes back more than a thousand years. It was first mentioned in a document of the year 973, "
    "when a bishop was sent there to build a church. In the following centuries merchants settled along the river, and "
    "the market became one of the most important in the region. Today it is a centre of science and industry."
)


@pytest.fixture
def folder(tmp_path):
    """A tiny Hugging Face checkpoint with grouped-query attention, and the model it was made from."""
    return save(tmp_path / "model")


def save(folder, tied=False, **settings):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(WORDS), max_position_embeddings=64, tie_word_embeddings=tied, eos_token_id=5, rms_norm_eps=1e-5,
        **settings,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(WORDS)}, merges=[("a", "b")])).save(
        str(folder / "tokenizer.json")
    )
    return folder, model


@pytest.mark.parametrize("tied", [False, True])
def test_a_hugging_face_folder_gives_the_logits_of_transformers(tmp_path, tied):
    folder, theirs = save(tmp_path / "model", tied)
    ours, words = pretrained.language_model(find_root(), {"name": "llama", "pretrained": str(folder)})
    tokens = torch.randint(0, len(WORDS), (3, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    assert (ours.head.weight is ours.tokens.weight) == tied
    assert words.encode("abab") == [3, 3] and words.end == 5


def as_gguf(path, model, kind="F32", permuted=True):
    """The same checkpoint as llama.cpp writes it: rows of queries and keys interleaved."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    config = model.config
    tensors = {"token_embd.weight": (state["model.embed_tokens.weight"], kind)}
    tensors |= {
        "output_norm.weight": (state["model.norm.weight"], "F32"),
        "output.weight": (state["lm_head.weight"], kind),
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, name in pretrained.LAYER.values():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            if permuted and name in heads:
                weight = weight.reshape(heads[name], 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
            tensors[f"blk.{layer}.{name}.weight"] = (weight, kind if weight.ndim == 2 else "F32")
    gguf_file.write(path, fields(config), tensors)


def fields(config):
    return {
        "general.architecture": "llama",
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 3, 1],
        "tokenizer.ggml.merges": ["a b", "Ġ a"],
        "tokenizer.ggml.eos_token_id": 5,
    }


def test_a_gguf_file_gives_the_same_logits_only_with_its_query_rows_put_back(tmp_path, folder):
    _, theirs = folder
    tokens = torch.randint(0, len(WORDS), (2, 12))
    found = {}
    for permuted in (True, False):
        as_gguf(tmp_path / f"{permuted}.gguf", theirs, permuted=permuted)
        ours, words = pretrained.from_gguf(tmp_path / f"{permuted}.gguf")
        with torch.no_grad():
            found[permuted] = (ours(tokens) - theirs(tokens).logits).abs().max().item()
    assert found[True] < 1e-5 and found[False] > 1e-4
    assert words.encode("ab a<|end|>") == [3, 4, 5] and words.decode([3, 4]) == "ab a"


@pytest.mark.parametrize(("kind", "step"), [("F16", 1e-3), ("Q8_0", 0.02), ("Q4_0", 0.25), ("Q4_1", 0.2)])
def test_quantised_numbers_come_back_to_their_grid(tmp_path, kind, step):
    numbers = np.random.default_rng(0).uniform(-1, 1, (4, 64)).astype(np.float32)
    gguf_file.write(tmp_path / "x.gguf", {"general.architecture": "llama"}, {"w": (numbers, kind)})
    back = Gguf(tmp_path / "x.gguf").tensor("w")
    assert back.shape == (4, 64) and 0 < abs(back - numbers).max() < step


@pytest.mark.parametrize("cut", [2, 40, -40])
def test_a_gguf_file_cut_short_is_one_clear_line(tmp_path, folder, cut):
    path = tmp_path / "model.gguf"
    as_gguf(path, folder[1])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(Failed, match="not a whole GGUF file"):
        pretrained.from_gguf(path)


def test_a_gguf_file_of_another_kind_is_refused(tmp_path):
    gguf_file.write(tmp_path / "x.gguf", {"general.architecture": "bert"}, {})
    with pytest.raises(Failed, match="only llama is read"):
        pretrained.from_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "mistral"}, "model_type"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
    ],
)
def test_models_that_would_be_computed_wrongly_are_refused(folder, change, told):
    path = folder[0] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(Misuse, match=told):
        pretrained.from_folder(folder[0])


def test_a_damaged_or_incomplete_folder_is_one_clear_line(folder):
    place = folder[0]
    shard = place / "model.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(Failed, match="damaged file"):
        pretrained.from_folder(place)
    shard.unlink()
    with pytest.raises(Failed, match=r"no \*.safetensors"):
        pretrained.from_folder(place)
    (place / "tokenizer.json").unlink()
    with pytest.raises(Failed, match=r"tokenizer\.json is missing"):
        pretrained.from_folder(place)


def test_a_gated_model_without_a_token_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    class GatedRepoError(Exception):
        pass

    def refuse(*_, **__):
        raise GatedRepoError("403 Client Error")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(Failed, match="gated: accept its licence"):
        pretrained.language_model(find_root(), {"name": "llama", "pretrained": "owner/gated"})


@pytest.mark.parametrize("adapter", [{"kind": "lora", "rank": 2}, {"kind": "prefix", "length": 3}])
def test_an_adapter_alone_trains_and_the_partition_places_it(adapter):
    torch.manual_seed(0)
    model, _ = pretrained.language_model(find_root(), {"name": "llama", "n_layer": 2, "adapter": adapter})
    model(torch.randint(0, 250, (2, 7))).sum().backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned and all("lora_" in name or "prefix" in name for name in learned)
    assert {blocks.name for blocks in partition(model)} == learned


def test_lora_starts_as_the_base_model_and_its_query_rows_keep_their_heads():
    torch.manual_seed(0)
    plain, _ = pretrained.language_model(find_root(), {"name": "llama", "n_layer": 1})
    torch.manual_seed(0)
    adapted, _ = pretrained.language_model(find_root(), {"name": "llama", "n_layer": 1, "adapter": {"kind": "lora"}})
    tokens = torch.randint(0, 250, (1, 5))
    assert torch.equal(plain(tokens), adapted.eval()(tokens))
    assert partition(adapted)["blocks.0.attention.wq.lora_B.weight"].kind == "head"


def test_texts_that_branch_see_their_own_branch_only():
    torch.manual_seed(0)
    model, _ = pretrained.language_model(find_root(), {"name": "llama", "n_layer": 2})
    stem, left, right = [5, 6, 7], [8, 9], [10, 11]
    places = torch.tensor([[0, 1, 2, 3, 4, 3, 4]])
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    seen[5:, 3:5] = False
    joint = model.hidden(torch.tensor([stem + left + right]), places, seen[None, None])
    torch.testing.assert_close(joint[:, :5], model.hidden(torch.tensor([stem + left])), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joint[:, 5:], model.hidden(torch.tensor([stem + right]))[:, 3:], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_smollm2_knows_english_only_with_its_query_rows_put_back(monkeypatch):
    root = find_root()
    prepare.prepare(root, "smollm2")
    perplexity = {}
    for put_back in (True, False):
        if not put_back:
            monkeypatch.setattr(pretrained, "halves", lambda weight, heads: weight)
        pretrained.opened.cache_clear()
        model, words = pretrained.language_model(root, {"name": "llama", "pretrained": "smollm2"})
        ids = torch.tensor([words.encode(PARAGRAPH)])
        with torch.no_grad():
            perplexity[put_back] = math.exp(model(ids[:, :-1], ids[:, 1:]).item())
    pretrained.opened.cache_clear()
    assert words.decode(ids[0].tolist()) == PARAGRAPH
    assert perplexity[True] < 12.5 and perplexity[False] > 3 * perplexity[True], perplexity


@pytest.mark.parametrize("adapter", [{"kind": "lora"}, {"kind": "prefix", "length": 2}])
def test_adapters_are_stored_as_the_base_is_so_that_a_layer_can_be_sharded(adapter):
    settings = {"name": "llama", "n_layer": 1, "dtype": "bfloat16", "adapter": adapter}
    model, _ = pretrained.language_model(find_root(), settings)
    assert {p.dtype for p in model.blocks.parameters()} == {torch.bfloat16}
    assert model(torch.randint(0, 250, (1, 5))).dtype == torch.bfloat16
