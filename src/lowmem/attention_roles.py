"""Roles of the projections of attention: which rows of which weight are queries, keys and values, head by head.

Attention is recognised by its children: one query, one key and one value projection, or one fused projection, under the
attribute names that PyTorch, Hugging Face, timm, diffusers and this package use. Head sizes come from the attention
module or from its config, never from dim / heads when the module says otherwise. Attention that this does not explain
makes its parameters unknown, and partition() then asks the user.
"""

from __future__ import annotations

import dataclasses
import math
import re

from torch import nn

from lowmem.layers import (
    CONTAINERS,
    CONVOLUTIONS,
    NORMS,
    Claim,
    Role,
    base_of,
    is_embedding,
    is_linear,
    is_position_table,
    is_projection,
    is_transposed,
    out_features,
    weight_of,
    words,
)

# Attribute names are compared word by word: q_proj, to_q, wq, q_lin and linear_q all leave the one word in PROJECTIONS.
PROJECTIONS = {
    **dict.fromkeys(("q", "wq", "qs", "query", "queries"), "query"),
    **dict.fromkeys(("k", "wk", "ks", "key", "keys"), "key"),
    **dict.fromkeys(("v", "wv", "vs", "value", "values"), "value"),
}
DECORATION = {
    "w", "proj", "project", "projection", "linear", "lin", "layer", "to", "attn", "attention", "self", "head", "heads", "fc",
    "net", "dense", "conv",
}  # fmt: skip
ATTENTION_WORDS = ("attention", "attn", "mha", "mhsa", "gqa", "mqa", "mla")
# Fused projections under these names hold all queries, then all keys, then all values: GPT-2; timm, BLIP; Phi-3; MPT and
# ModernBERT; lucidrains; Bark.
CONCATENATED = ("c_attn", "qkv", "qkv_proj", "Wqkv", "to_qkv", "att_proj")
# These classes hold the queries, key and value of key head 0, then of key head 1, ...
GROUPED = (
    "GPTNeoXAttention", "GPTNeoXJapaneseAttention", "BloomAttention", "PersimmonAttention", "FalconAttention",
    "GPTBigCodeAttention", "MiniMaxLightningAttention",
)  # fmt: skip
# These classes hold the query and the gate of head 0, then of head 1, ...
GATED_QUERIES = ("Qwen3NextAttention", "Qwen3_5Attention", "Qwen3_5MoeAttention", "Qwen4ExpTextAttention")
JOINED = re.compile(r"w?(qkv|kqv|qk|kv).?")  # other words for several projections in one
HEADS = (
    "n_head", "num_heads", "num_attention_heads", "n_heads", "heads", "nhead", "attention_heads", "num_attn_heads",
)  # fmt: skip
KEY_HEADS = ("n_kv_head", "num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size", "d_kv")


def find_attention(model: nn.Module) -> list[nn.Module]:
    """Every attention module of the model, also those of a shape that only a user can explain."""
    kinds = (lambda m: isinstance(m, nn.MultiheadAttention), _layout, _projections)
    found = {id(m): m for m in model.modules() if any(kind(m) for kind in kinds)}
    inside = set(found)
    for path, module in reversed(list(model.named_modules())):  # children before parents
        below = any(id(child) in inside for child in module.children())
        if not below and id(module) not in found and len(_unexplained(module)) >= _fewest_matrices(path, module):
            found[id(module)] = module
        if below or id(module) in found:
            inside.add(id(module))
    return [m for m in model.modules() if id(m) in found]


def _projections(module: nn.Module) -> dict[str, nn.Module]:
    """{query, key, value: child} or {fused: child} of an attention module; {} for any other module.

    A child called like a fused projection whose row order is not known comes as {"unknown": child}.
    """
    matrices = {name: child for name, child in module._modules.items() if _has_matrix(child)}
    exact, fused, joined = {}, {}, {}
    for name, child in matrices.items():
        kinds = [PROJECTIONS.get(word, word) for word in words(name) if word not in DECORATION]
        known = name in CONCATENATED or (name == "query_key_value" and _is_a(module, GROUPED))
        if len(kinds) == 1 and kinds[0] in ("query", "key", "value"):
            exact.setdefault(kinds[0], child)
        elif known and is_projection(base_of(child)):
            fused["fused"] = child
        elif len({"query", "key", "value"} & set(kinds)) > 1 or any(JOINED.fullmatch(kind) for kind in kinds):
            joined["unknown"] = child
    if len(exact) == 3 and not joined and all(is_projection(base_of(child)) for child in exact.values()):
        return exact
    if fused:
        return {**fused, **({"query": exact["query"]} if "query" in exact else {})}
    return joined or ({"unknown": exact["query"]} if len(exact) == 3 else {})


def claim_attention(module: nn.Module, claim: Claim) -> None:
    """Roles of query, key, value or fused projections of one attention module."""
    if layout := _layout(module):
        _claim_layout(module, layout, claim)
        return
    if isinstance(module, nn.MultiheadAttention):
        size, rows = module.embed_dim // module.num_heads, module.embed_dim
        claim(module.in_proj_weight, Role("fused", parts=tuple((n, rows, size) for n in ("query", "key", "value"))))
        claim(module.q_proj_weight, Role("head", head_dim=size))
        claim(module.k_proj_weight, Role("head", head_dim=size))
        claim(module.v_proj_weight, Role("value"))
        return
    found = _projections(module)
    if "fused" in found:
        _claim_projection(found["fused"], fused_role(module, base_of(found["fused"])), claim)
    elif "value" not in found:
        why = f"{type(module).__name__} is attention in which no query, key and value projection was found"
        for parameter in _unexplained(module):
            claim(parameter, Role("unknown", why=why))
        return
    if "query" not in found:
        return  # with a fused projection, only GPT-2's cross attention keeps a query apart
    rows = {out_features(base_of(found[name])) for name in ("query", "key") if name in found}
    size, why = head_size(module, out_features(base_of(found["query"])))
    for name, child in module._modules.items():
        kinds = {PROJECTIONS[word] for word in words(name) if word in PROJECTIONS}
        if len(kinds) != 1 or child is found.get("fused") or not is_projection(base_of(child)):
            continue
        if kinds == {"value"}:
            _claim_projection(child, Role("value"), claim)
        elif size and out_features(base_of(child)) in rows and out_features(base_of(child)) % size == 0:
            _claim_projection(child, Role("head", head_dim=size), claim)
        else:
            why = (
                why
                or f"{out_features(base_of(child))} rows of {type(module).__name__} are not known to be heads of size {size}"
            )
            _claim_projection(child, Role("unknown", why=why), claim)


def _layout(module: nn.Module) -> dict[str, Role]:
    """{child: role} of attention whose projections have a layout of their own; {} for any other module.

    Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): queries of all heads, maybe from a latent
    vector; the latent of keys and values beside the one rotary key that all heads share; from that latent, key and value
    of each head in turn. Rows that make a latent are neurons.
    Gated delta networks: query, key, value and gate of each key head in turn (Qwen3-Next), or all queries, all keys, all
    values, and the gate apart (Qwen3.5), or each by itself (Olmo hybrid). Their full attention has query and gate of
    each head in turn. The indexer of sparse attention (DeepSeek-V3.2) has queries of its heads and one key.
    Deformable attention (arXiv 2010.04159, equation 2) has no keys: offsets and weights are linear in the query.
    lucidrains' to_kv beside to_q: all keys, then all values. DeBERTa (arXiv 2006.03654, equation 4): query, key and value
    of each head in turn, and a key and a query of positions.
    """
    children = module._modules.keys()
    if {"kv_a_proj_with_mqa", "kv_b_proj"} <= children:
        return _latent_attention(module)
    if {"in_proj_qkvz", "in_proj_qkv"} & children or ("q_proj" in children and hasattr(module, "head_k_dim")):
        return _delta_network(module)
    if {"wq_b", "wk", "weights_proj"} <= children and (size := _first(module, HEAD_SIZES)):
        return dict.fromkeys(("wq_b", "wk"), Role("head", head_dim=size))
    if {"sampling_offsets", "attention_weights"} <= children:
        return {"value_proj": Role("value")}
    if "in_proj" in children and _is_a(module, ("DisentangledSelfAttention",)):
        return _disentangled(module)
    if {"to_q", "to_kv"} <= children and "to_k" not in children:
        return _queries_beside_keys_and_values(module)
    if _is_a(module, GATED_QUERIES) and (size := _first(module, HEAD_SIZES)):
        turn = (("query", size, size), ("neuron", size, size))
        queries = Role("fused", parts=turn * (head_counts(module)[0] or 1))
        return {"q_proj": queries, "k_proj": Role("head", head_dim=size), "v_proj": Role("value")}
    return {}


def _latent_attention(module: nn.Module) -> dict[str, Role]:
    heads, _ = head_counts(module)
    sizes = [_first(module, (key,)) for key in ("qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "qk_rope_head_dim")]
    if getattr(module, "qk_rope_head_dim", None) == 0:  # a layer without positions
        sizes[-1] = 0
    if not heads or not all(sizes[:-1]) or sizes[-1] is None:
        return {}
    plain, value, latent, rotary = sizes
    shared = (("key", rotary, rotary),) if rotary else ()
    query = Role("head", head_dim=plain + rotary)
    return {
        "q_proj": query,
        "q_a_proj": Role("neuron"),
        "q_b_proj": query,
        "kv_a_proj_with_mqa": Role("fused", parts=(("neuron", latent, latent), *shared)),
        "kv_b_proj": Role("fused", parts=(("key", plain, plain), ("value", value, value)) * heads),
    }


def _disentangled(module: nn.Module) -> dict[str, Role]:
    """DeBERTa: in_proj (3 x heads x size, width), pos_proj and pos_q_proj (heads x size, width)."""
    heads, _ = head_counts(module)
    rows = out_features(base_of(module._modules["in_proj"])) // 3
    if not heads or rows % heads:
        return {}
    size = rows // heads
    head = Role("head", head_dim=size)
    turn = (("query", size, size), ("key", size, size), ("value", size, size))
    return {"in_proj": Role("fused", parts=turn * heads), "pos_proj": head, "pos_q_proj": head}


def _queries_beside_keys_and_values(module: nn.Module) -> dict[str, Role]:
    """to_q (heads x size, width) and to_kv (2 x heads x size, width)."""
    queries, both = (base_of(module._modules[name]) for name in ("to_q", "to_kv"))
    size, _ = head_size(module, out_features(queries))
    rows = out_features(both) // 2
    if not size or rows % size or out_features(both) % 2:
        return {}
    return {
        "to_q": Role("head", head_dim=size),
        "to_kv": Role("fused", parts=(("key", rows, size), ("value", rows, size))),
    }


def _delta_network(module: nn.Module) -> dict[str, Role]:
    sizes = [_first(module, (key,)) for key in ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")]
    if not all(sizes) or sizes[1] % sizes[0]:
        return {}
    heads, value_heads, size, value = sizes
    if "in_proj_qkvz" in module._modules:
        rows = value_heads // heads * value  # several value heads share a key head
        turn = (("query", size, size), ("key", size, size), ("value", rows, rows), ("neuron", rows, rows))
        return {"in_proj_qkvz": Role("fused", parts=turn * heads)}
    if "q_proj" in module._modules:
        return {"q_proj": Role("head", head_dim=size), "k_proj": Role("head", head_dim=size), "v_proj": Role("value")}
    rows = value_heads * value
    parts = (("query", heads * size, size), ("key", heads * size, size), ("value", rows, rows))
    return {"in_proj_qkv": Role("fused", parts=parts)}


def _claim_layout(module: nn.Module, layout: dict[str, Role], claim: Claim) -> None:
    """Roles of a known layout. Other linear layers beside it have neurons; anything else with matrices is not known."""
    for name, child in module._modules.items():
        if name in layout and child is not None:
            _claim_projection(child, layout[name], claim)
        elif child is not None and not is_projection(base_of(child)) and not _layout(child):
            why = f"{type(child).__name__} inside {type(module).__name__} is of unknown shape"
            for parameter in _unexplained(child):
                claim(parameter, Role("unknown", why=why))


def fused_role(module: nn.Module, layer: nn.Module) -> Role:
    """Parts of a fused projection in the order its rows hold them."""
    axis, rows = is_transposed(layer), out_features(layer)
    heads, kv_heads = head_counts(module)
    if heads is None:
        return Role("unknown", why=_no_heads(module))
    if getattr(module, "is_cross_attention", False):  # GPT-2 cross attention: keys and values only
        half = rows // 2
        return Role("fused", axis, parts=(("key", half, half // heads), ("value", half, half // heads)))
    if getattr(module, "multi_query", False) and not getattr(module, "new_decoder_architecture", False):
        kv_heads = 1  # Falcon, GPT-BigCode
    size = _first(module, HEAD_SIZES) or rows // (heads + 2 * kv_heads)
    if rows != (heads + 2 * kv_heads) * size or heads % kv_heads or isinstance(layer, CONVOLUTIONS):
        why = (
            f"{rows} rows are not known to be {heads} query heads and 2 x {kv_heads} key and value heads of size {size}"
        )
        return Role("unknown", why=why)
    if _is_a(module, ("CodeGenAttention",)):  # made for four devices: four times queries, values, keys
        quarter = heads * size // 4
        return Role("fused", axis, parts=tuple((part, quarter, size) for part in ("query", "value", "key")) * 4)
    turns = kv_heads if _is_a(module, GROUPED) else 1
    queries, keys = heads * size // turns, kv_heads * size // turns
    return Role("fused", axis, parts=(("query", queries, size), ("key", keys, size), ("value", keys, size)) * turns)


def _claim_projection(child: nn.Module, role: Role, claim: Claim) -> None:
    """Role for a projection's weight; adapters on it (LoRA) get the role where their rows are the projection's rows."""
    base = base_of(child)
    claim(weight_of(base), dataclasses.replace(role, axis=is_transposed(base)))
    for parameter in _unexplained(base) if weight_of(base) is None else ():
        claim(
            parameter,
            Role("unknown", why=f"a part of a projection of class {type(base).__name__} that has no plain weight"),
        )
    if base is child:
        return
    for inner in child.modules():
        if inner is not base and is_linear(inner):
            same_rows = out_features(inner) == out_features(base)  # the B matrix of LoRA: (out, rank)
            claim(weight_of(inner), dataclasses.replace(role, axis=0) if same_rows else Role("neuron"))


def head_counts(module: nn.Module) -> tuple[int | None, int | None]:
    """(query heads, key heads) from the module, else from its config; None when nobody says."""
    heads = _first(module, HEADS)
    return heads, _first(module, KEY_HEADS) or heads


def head_size(module: nn.Module, query_rows: int) -> tuple[int | None, str]:
    """(rows per query head, ""), or (None, what is wrong)."""
    heads, size = _first(module, HEADS), _first(module, HEAD_SIZES)
    if heads is None and size is None:
        return None, _no_heads(module)
    if query_rows % (heads or 1) or (size and query_rows != (heads or query_rows // size) * size):
        parts = " ".join(filter(None, (heads and f"{heads} heads", size and f"of size {size}")))
        return None, f"{query_rows} query rows of {type(module).__name__} do not divide into {parts}"
    return size or query_rows // heads, ""


def _no_heads(module: nn.Module) -> str:
    return f"{type(module).__name__} does not say its number of heads (give it an attribute n_head)"


def _fewest_matrices(path: str, module: nn.Module) -> float:
    """From how many unexplained matrices on a module counts as attention: its class or its attribute is called so.

    Graph attention without queries and keys is none.
    """
    of_class = words(type(module).__name__)
    if is_linear(module) or isinstance(module, (*CONTAINERS, CONVOLUTIONS)) or {"graph", "gat"} & set(of_class):
        return math.inf
    if of_class[-1:] in (["mlp"], ["output"]):  # LxmertAttentionOutput: a layer after attention
        return math.inf
    if any(word.endswith(ATTENTION_WORDS) for word in of_class):
        return 1
    called = any(word.endswith(ATTENTION_WORDS) for word in words(path.rsplit(".", 1)[-1])[-1:])
    return 2 if called else math.inf


def _unexplained(module: nn.Module) -> list[nn.Parameter]:
    """Matrices inside an attention module of unknown shape: weights of linear layers and bare ones."""
    found = []
    for inner in module.modules():
        if isinstance(inner, (CONVOLUTIONS, *NORMS, nn.RNNBase)) or is_embedding(inner):
            continue
        for key, parameter in inner.named_parameters(recurse=False):
            vector = parameter.numel() == max(parameter.shape, default=1)
            if not vector and not is_position_table(inner, key, parameter) and "bias" not in words(key):
                found.append(parameter)
    return found


def _has_matrix(module: nn.Module | None) -> bool:
    return module is not None and (is_projection(base_of(module)) or any(p.ndim >= 2 for p in module.parameters()))


def _is_a(module: nn.Module, class_names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in class_names for kind in type(module).__mro__)


def _first(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first positive whole number under one of the names, in the module, else in its config."""
    for place in (module, getattr(module, "config", None)):
        for name in names:
            try:
                value = getattr(place, name, None)
            except Exception:  # some configs refuse what differs between layers
                continue
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
