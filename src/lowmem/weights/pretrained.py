"""Language models for the tasks: model and tokenizer, from a checkpoint or fresh, with or without an adapter.

A checkpoint is a dataset of data/sources.yaml that holds a GGUF file (smollm2), a local folder with config.json,
safetensors and tokenizer.json, or the name of such a repository on the Hugging Face hub. All of the Llama family
(Llama, Llama 2, TinyLlama, SmolLM2) go into models/llama.py.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowmem import distributed
from lowmem.data import fetch, prepare
from lowmem.errors import Failed, Misuse, one_line
from lowmem.files import read_json, safe_names
from lowmem.models import llama
from lowmem.weights import gguf, lazy_weights, shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYER = {  # ours: (Hugging Face, GGUF)
    "norm1": ("input_layernorm", "attn_norm"),
    "attention.wq": ("self_attn.q_proj", "attn_q"),
    "attention.wk": ("self_attn.k_proj", "attn_k"),
    "attention.wv": ("self_attn.v_proj", "attn_v"),
    "attention.wo": ("self_attn.o_proj", "attn_output"),
    "norm2": ("post_attention_layernorm", "ffn_norm"),
    "mlp.gate": ("mlp.gate_proj", "ffn_gate"),
    "mlp.up": ("mlp.up_proj", "ffn_up"),
    "mlp.down": ("mlp.down_proj", "ffn_down"),
}
OUTSIDE = {"tokens": ("model.embed_tokens", "token_embd"), "norm": ("model.norm", "output_norm")}


@dataclass(frozen=True)
class Tokenizer:
    """encode(text) -> ids, with what the tokenizer puts before a text if `start`; decode(ids) -> text; end: id after a text."""

    encode: Callable[..., list[int]]
    decode: Callable[[list[int]], str]
    end: int
    size: int


def language_model(root: Path, settings: dict, device: str = "cpu") -> tuple[llama.Llama, Tokenizer]:
    """A Llama and its tokenizer from config["model"]: {name: llama, pretrained?, dtype?, adapter?, or fields of llama.Config}.

    pretrained: see the module's docstring; without it fresh weights and a byte tokenizer. dtype: how weights are stored.
    adapter: {kind: lora | prefix, ...}, keywords of the attach() in models/<kind>.py.
    Where several processes share the work, the weights of a folder stay in their files until fsdp.shard_model().
    Raises Misuse for incompatible settings, Failed when a checkpoint cannot be downloaded or read.
    """
    own = {key: value for key, value in settings.items() if key not in ("name", "pretrained", "dtype", "adapter")}
    source = settings.get("pretrained")
    if settings.get("name") != "llama":
        raise Misuse(f"a language model needs name llama; got {settings}")
    if source is None:
        model, tokenizer = llama.build(**{"vocab_size": 258, **own}), byte_tokenizer()
    else:
        if own:
            raise Misuse(f"model: {next(iter(own))} cannot be set beside pretrained; the checkpoint decides it")
        with distributed.together():
            model, tokenizer = checkpoint(root, source, device)
    return finished(model, settings, device), tokenizer


def finished(model: llama.Llama, settings: dict, device: str) -> llama.Llama:
    """The model in its dtype, with its adapter; and with its weights, unless several processes will share them."""
    dtype, adapter = settings.get("dtype", "float32"), dict(settings.get("adapter") or {})
    if dtype not in DTYPES:
        raise Misuse(f"model.dtype is {dtype!r}; choose {', '.join(DTYPES)}")
    model = model.to(DTYPES[dtype])
    if not hasattr(model, "unread"):
        model = model.to(device)
    if adapter:
        attach(model, adapter.pop("kind", None), adapter, device)
    if distributed.world() == 1:
        lazy_weights.load(model, device)
    return model


def attach(model: llama.Llama, kind: str | None, settings: dict, device: str) -> None:
    """Attach a fresh adapter to the model, in place."""
    from lowmem.models import lora, prefix  # named, so that a change to one of them makes its records stale

    kinds = {"lora": lora.attach, "prefix": prefix.attach}
    if kind not in kinds:
        raise Misuse(f"model.adapter.kind is {kind!r}; choose lora or prefix")
    try:
        kinds[kind](model, device=device, **settings)
    except TypeError as error:
        raise Misuse(f"model.adapter: {error}") from error


def byte_tokenizer() -> Tokenizer:
    """UTF-8 bytes, and one id that ends a text."""

    def encode(text: str, start: bool = False) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    return Tokenizer(encode, decode, end=256, size=257)


def checkpoint(root: Path, source: str, device: str) -> tuple[llama.Llama, Tokenizer]:
    """Model and tokenizer of a checkpoint, see the module's docstring; those of a folder are only registered for later."""
    if source in fetch.listed(root):
        folder = prepare.ready(root, {"dataset": source, "source": "package"})
        found = sorted(folder.glob("*.gguf"))
        if not found:
            raise Failed(f"no GGUF file in {folder}; run: lowmem prepare {source}")
        return from_gguf(found[0])
    folder = safe_names.at_home(source)
    if not folder.is_absolute():
        folder = folder if folder.is_dir() else Path(root) / folder
    return from_folder(folder if folder.is_dir() else download(source), device)


def blank(config: dict, device: str = "cpu") -> llama.Llama:
    """A Llama without weights, whose buffers are on the device."""
    with torch.device("meta"):
        model = llama.build(**config)
    made = model.config
    with torch.device(device):
        model.cos, model.sin = llama.rotary_table(made.block_size, made.head_dim, made.rope_base)
    return model


def fill(model: llama.Llama, weights: dict[str, Tensor], place: Path) -> llama.Llama:
    """Load the weights unchanged, in their own dtype; Failed when one is missing or has another shape."""
    if model.config.tied:
        weights = {**weights, "head.weight": weights["tokens.weight"]}
    try:
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, KeyError) as error:
        raise Failed(f"{place} does not hold the weights that its description says: {one_line(error, 200)}") from error
    if model.config.tied:
        model.head.weight = model.tokens.weight
    return model.requires_grad_(True)


# -- GGUF ------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def opened(path: Path, changed: int) -> tuple[dict, dict[str, Tensor], dict]:
    """(settings of llama.build, weights by our names, metadata) of a GGUF file. Kept, as the runs of a job share it."""
    file = gguf.Gguf(path)
    about = file.fields
    if about.get("general.architecture") != "llama":
        raise Failed(f"{path} holds a model of kind {about.get('general.architecture')!r}; only llama is read")
    key = {name.removeprefix("llama."): value for name, value in about.items() if name.startswith("llama.")}
    try:
        stated = {
            "n_layer": key["block_count"],
            "n_head": key["attention.head_count"],
            "n_kv_head": key.get("attention.head_count_kv", key["attention.head_count"]),
            "n_embd": key["embedding_length"],
            "n_hidden": key["feed_forward_length"],
            "vocab_size": len(about["tokenizer.ggml.tokens"]),
            "block_size": key["context_length"],
            "rope_base": key.get("rope.freq_base", 10000.0),
            "norm_eps": key["attention.layer_norm_rms_epsilon"],
            "tied": "output.weight" not in file.names,
        }
    except (KeyError, TypeError) as error:
        raise Failed(f"{path} does not say {error}; it is damaged or not a Llama") from error
    config = shape.checked(stated, path)
    config["norm_eps"] = round(config["norm_eps"], 12)  # stored in fp32
    weights = {
        f"{ours}.weight": torch.from_numpy(file.tensor(f"{theirs}.weight")) for ours, (_, theirs) in OUTSIDE.items()
    }
    if not config["tied"]:
        weights["head.weight"] = torch.from_numpy(file.tensor("output.weight"))
    heads = {"attention.wq": config["n_head"], "attention.wk": config["n_kv_head"]}
    for layer in range(config["n_layer"]):
        for ours, (_, theirs) in LAYER.items():
            weight = torch.from_numpy(file.tensor(f"blk.{layer}.{theirs}.weight"))
            if ours in heads and (weight.dim() != 2 or weight.shape[0] % (2 * heads[ours])):
                raise Failed(f"{path}: the rows of {theirs} are not those of {heads[ours]} heads; it is damaged")
            weights[f"blocks.{layer}.{ours}.weight"] = halves(weight, heads[ours]) if ours in heads else weight
    return config, weights, about


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection (heads * D, C) from llama.cpp's order, which turns neighbouring rows of a head
    together, to ours, which turns its two halves together. Without this a model still runs, but ten times worse."""
    pairs = weight.view(heads, -1, 2, weight.shape[1])  # (heads, D / 2, 2, C)
    return pairs.transpose(1, 2).reshape(weight.shape)


def from_gguf(path: Path) -> tuple[llama.Llama, Tokenizer]:
    """Model and tokenizer of a GGUF file with a byte-level BPE."""
    config, weights, about = opened(path, path.stat().st_mtime_ns)
    model = fill(blank(config), {name: weight.clone() for name, weight in weights.items()}, path)
    return model, gguf_words(about, path)


def gguf_words(about: dict, path: Path) -> Tokenizer:
    """The tokenizer that a GGUF file describes (byte-level BPE, digits one by one, as SmolLM2 was trained with)."""
    import tokenizers

    if (about.get("tokenizer.ggml.model"), about.get("tokenizer.ggml.pre")) != ("gpt2", "smollm"):
        raise Failed(f"{path} has a tokenizer of another kind than SmolLM2's; use the model's Hugging Face folder")
    try:
        tokens, kinds = about["tokenizer.ggml.tokens"], about["tokenizer.ggml.token_type"]
        merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
        control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    except Exception as error:  # the library raises Exception itself
        raise Failed(f"{path} has a damaged tokenizer ({error}); delete it and prepare it again") from error
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    pieces = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, pieces])
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in control])
    return as_words(made, shape.token(about.get("tokenizer.ggml.eos_token_id"), len(tokens), path))


def as_words(tokenizer, end: int) -> Tokenizer:
    """Wrap a tokenizer of the package tokenizers as a Tokenizer."""

    def encode(text: str, start: bool = False) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=start).ids

    def decode(ids: list[int]) -> str:
        return tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    return Tokenizer(encode, decode, end, tokenizer.get_vocab_size())


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def download(name: str) -> Path:
    """Folder of a hub repository, from the local cache where it is; a gated one without a token is one clear line."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise Failed(
            f"{name} is not a local folder, and downloading from the hub needs a package; pip install 'lowmem[hub]'"
        ) from error
    wanted = ["config.json", "tokenizer.json", "model*.safetensors", lazy_weights.INDEX, "generation_config.json"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the hub's library raises dozens of exception types
        kind = type(error).__name__
        if kind == "GatedRepoError" or "gated" in str(error).lower():
            advice = "accept its licence on its page, then `hf auth login` or set HF_TOKEN; or name a local folder"
            raise Failed(f"the model {name} is gated: {advice}") from error
        raise Failed(
            f"cannot get the model {name} ({kind}: {one_line(error)}); name a local folder, or see the hub"
        ) from error


def from_folder(folder: Path, device: str = "cpu") -> tuple[llama.Llama, Tokenizer]:
    """Model and tokenizer of a folder (config.json, *.safetensors, tokenizer.json); weights wait for lazy_weights.load()."""
    import tokenizers

    for path in (folder / "config.json", folder / "tokenizer.json"):
        if not path.is_file():
            raise Failed(f"{path} is missing; a model's folder holds config.json, tokenizer.json and *.safetensors")
    about, files = read_json(folder / "config.json"), lazy_weights.tensors(folder)
    config = shape.checked(described(about, folder), folder / "config.json")
    model = blank(config, device)
    named = {name: theirs_of(name) for name, _ in model.named_parameters()}  # a tied head is not a parameter of its own
    absent = sorted(hub_name for hub_name in named.values() if hub_name not in files)
    if absent:
        raise Failed(f"{folder} does not hold the weights that its config.json says: no {absent[0]}; get it again")
    lazy_weights.register(model, {name: (files[hub_name], hub_name) for name, hub_name in named.items()})
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises Exception itself
        raise Failed(f"{folder / 'tokenizer.json'} is a damaged file ({one_line(error)}); get it again") from error
    ends = about.get("eos_token_id")
    end = ends[0] if isinstance(ends, list) and ends else ends
    if end is None:
        raise Failed(f"{folder}/config.json: no eos_token_id; add the id of the token that ends a text")
    return model, as_words(tokenizer, shape.token(end, config["vocab_size"], folder / "config.json"))


def theirs_of(ours: str) -> str:
    """The name on the hub of one of our parameters."""
    if ours.startswith("blocks."):
        _, layer, name = ours.removesuffix(".weight").split(".", 2)
        return f"model.layers.{layer}.{LAYER[name][0]}.weight"
    names = {**{name: theirs for name, (theirs, _) in OUTSIDE.items()}, "head": "lm_head"}
    return f"{names[ours.removesuffix('.weight')]}.weight"


def described(about: dict, folder: Path) -> dict:
    """Settings of llama.build from a config.json; Misuse for models that models/llama.py does not compute."""
    if not isinstance(about, dict):
        raise Failed(f"{folder}/config.json describes no model; get it again")
    rope = about.get("rope_parameters") or about.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise Failed(f"{folder}/config.json: its rope settings are {shape.shown(rope)}; get it again")
    unsupported = {
        "model_type": about.get("model_type") != "llama",
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "attention_bias": bool(about.get("attention_bias")),
        "mlp_bias": bool(about.get("mlp_bias")),
        "hidden_act": about.get("hidden_act", "silu") != "silu",
    }
    for key, found in unsupported.items():
        if found:
            value = shape.shown(about.get(key, rope))
            raise Misuse(f"{folder}/config.json: {key} is {value}; models/llama.py computes plain Llama models only")
    try:
        return {
            "n_layer": about["num_hidden_layers"],
            "n_head": about["num_attention_heads"],
            "n_kv_head": about.get("num_key_value_heads") or about["num_attention_heads"],
            "head_dim": about.get("head_dim"),
            "n_embd": about["hidden_size"],
            "n_hidden": about["intermediate_size"],
            "vocab_size": about["vocab_size"],
            "block_size": about.get("max_position_embeddings", 2048),
            "rope_base": rope.get("rope_theta") or about.get("rope_theta", 10000.0),
            "norm_eps": about.get("rms_norm_eps", 1e-6),
            "tied": about.get("tie_word_embeddings", False),
        }
    except KeyError as error:
        raise Failed(f"{folder}/config.json does not say {error}; it describes no Llama") from error
