"""Toy Llama checkpoints as the hub holds them: several safetensors files, their index, config.json and tokenizer.json."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from lowmem.models import llama
from lowmem.weights import lazy_weights, pretrained

SHAPE = {"n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 20, "n_hidden": 26, "vocab_size": 50, "block_size": 256}


def write(folder: Path, dtype: torch.dtype = torch.float32, parts: int = 3, **settings) -> llama.Llama:
    """A checkpoint with random weights in `parts` files; returns the model. settings: replace those of SHAPE."""
    import tokenizers

    shape, folder = {**SHAPE, **settings}, Path(folder)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = llama.build(**shape).to(dtype)
    weights = {pretrained.theirs_of(ours): p.detach() for ours, p in model.named_parameters()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)  # old checkpoints hold it; nobody reads it
    names, index = sorted(weights), {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        chosen = names[part::parts]
        save_file({name: weights[name] for name in chosen}, folder / file)
        index |= dict.fromkeys(chosen, file)
    (folder / lazy_weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    about = {
        "model_type": "llama",
        "num_hidden_layers": shape["n_layer"],
        "num_attention_heads": shape["n_head"],
        "num_key_value_heads": shape["n_kv_head"],
        "hidden_size": shape["n_embd"],
        "intermediate_size": shape["n_hidden"],
        "vocab_size": shape["vocab_size"],
        "max_position_embeddings": shape["block_size"],
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": shape.get("tied", False),
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(about))
    letters = ["<end>", *(chr(k) for k in range(32, 32 + shape["vocab_size"] - 1))]
    words = tokenizers.models.BPE(vocab={w: i for i, w in enumerate(letters)}, merges=[], unk_token="<end>")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    return model
