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
import warnings

from torch import nn

from lowmem.blocks.adapters import claim_adapters
from lowmem.blocks.attention_probe import first_head, fused_parts, is_described
from lowmem.blocks.attention_variants import layout
from lowmem.blocks.heads import apart, head_counts, head_size, is_a, no_heads, own_size
from lowmem.blocks.layers import (
    CONTAINERS,
    CONVOLUTIONS,
    NORMS,
    Claim,
    Role,
    base_of,
    is_embedding,
    is_lazy,
    is_linear,
    is_position_table,
    is_projection,
    is_transposed,
    out_features,
    projection_in,
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
    "net", "dense", "conv", "c",
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
JOINED = re.compile(r"w?(qkv|kqv|qk|kv).?")  # other words for several projections in one


def find_attention(model: nn.Module) -> list[nn.Module]:
    """Every attention module of the model, also those of a shape that only a user can explain."""
    kinds = (lambda m: isinstance(m, nn.MultiheadAttention), layout, _projections)
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
        known = name in CONCATENATED or (name == "query_key_value" and is_a(module, GROUPED))
        if len(kinds) == 1 and kinds[0] in ("query", "key", "value"):
            exact.setdefault(kinds[0], child)
        elif known and is_projection(projection_in(child)):
            fused["fused"] = child
        elif len({"query", "key", "value"} & set(kinds)) > 1 or any(JOINED.fullmatch(kind) for kind in kinds):
            joined["unknown"] = child
    if len(exact) == 3 and not joined and all(is_projection(projection_in(child)) for child in exact.values()):
        return exact
    if fused:
        return {**fused, **({"query": exact["query"]} if "query" in exact else {})}
    return joined or ({"unknown": exact["query"]} if len(exact) == 3 else {})


def claim_attention(module: nn.Module, claim: Claim) -> None:
    """Roles of query, key, value or fused projections of one attention module."""
    if known := layout(module):
        _claim_layout(module, known, claim)
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
        _claim_projection(found["fused"], fused_role(module, projection_in(found["fused"])), claim)
    elif "value" not in found:
        why = f"{type(module).__name__} is attention in which no query, key and value projection was found"
        inside = [m for child in found.values() for m in child.modules() if isinstance(m, CONVOLUTIONS)]
        for parameter in (*_unexplained(module), *map(weight_of, inside)):
            claim(parameter, Role("unknown", why=why))
        return
    if "query" not in found:
        return  # with a fused projection, only GPT-2's cross attention keeps a query apart
    rows = {out_features(projection_in(found[name])) for name in ("query", "key") if name in found}
    size, why = head_size(module, out_features(projection_in(found["query"])))
    if size and "value" in found and (other := _other_heads(module, found, size)):
        size, why = None, other
    for name, child in module._modules.items():
        kinds = {PROJECTIONS[word] for word in words(name) if word in PROJECTIONS}
        if len(kinds) != 1 or child is found.get("fused") or not is_projection(projection_in(child)):
            continue
        if _has_axes_of_heads(projection_in(child)):
            which = f"which axes of a weight of {weight_of(projection_in(child)).ndim} axes count heads is not known"
            _claim_projection(child, Role("unknown", why=which), claim)
        elif kinds == {"value"}:
            _claim_projection(child, Role("value"), claim)
        elif size and out_features(projection_in(child)) in rows and out_features(projection_in(child)) % size == 0:
            _claim_projection(child, Role("head", head_dim=size), claim)
        else:
            why = (
                why
                or f"{out_features(projection_in(child))} rows of {type(module).__name__} are not known to be heads of {size}"
            )
            _claim_projection(child, Role("unknown", why=why), claim)


def _has_axes_of_heads(layer: nn.Module) -> bool:
    """Whether a projection keeps its heads in axes of their own: (heads, in, size) and the like."""
    weight = weight_of(layer)
    return weight is not None and weight.ndim > 2 and not isinstance(layer, CONVOLUTIONS)


def _other_heads(module: nn.Module, found: dict[str, nn.Module], size: int) -> str:
    """Why the rows of separate queries or keys are not heads one after the other; empty where nothing says so."""
    query, key = projection_in(found["query"]), projection_in(found["key"])
    rows, heads = out_features(query), out_features(query) // size
    taken = [getattr(projection_in(child), "in_features", 0) for child in module._modules.values() if child is not None]
    if heads > 1 and rows * heads in taken:
        return f"{rows} query rows of {type(module).__name__} seem to serve all of its {heads} heads"
    if any(out_features(layer) > size and first_head(module, layer, size) is False for layer in (query, key)):
        return apart(module)
    return ""


def _claim_layout(module: nn.Module, known: dict[str, Role], claim: Claim) -> None:
    """Roles of a known layout. Other linear layers beside it have neurons; anything else with matrices is not known."""
    for name, child in module._modules.items():
        if name in known and child is not None:
            _claim_projection(child, known[name], claim)
        elif child is not None and not is_projection(projection_in(child)) and not layout(child) and not _plain(child):
            why = f"{type(child).__name__} inside {type(module).__name__} is of unknown shape"
            for parameter in _unexplained(child):
                claim(parameter, Role("unknown", why=why))


def _plain(module: nn.Module) -> bool:
    """Whether its weights are all in torch's linear layers, convolutions and norms: Sequential(Linear, GELU, Linear)."""
    owners = [m for m in module.modules() if m._parameters]
    return all(type(m).__module__.startswith("torch.nn.") and isinstance(m, _PLAIN) for m in owners)


_PLAIN = (nn.Linear, CONVOLUTIONS, *NORMS)


def fused_role(module: nn.Module, layer: nn.Module) -> Role:
    """Parts of a fused projection in the order its rows hold them."""
    axis, rows = is_transposed(layer), out_features(layer)
    heads, kv_heads = head_counts(module)
    if heads is None:
        return Role("unknown", why=no_heads(module))
    if getattr(module, "is_cross_attention", False):  # GPT-2 cross attention: keys and values only
        half = rows // 2
        return Role("fused", axis, parts=(("key", half, half // heads), ("value", half, half // heads)))
    if getattr(module, "multi_query", False) and not getattr(module, "new_decoder_architecture", False):
        kv_heads = 1  # Falcon, GPT-BigCode
    parts = _head_after_head(module, rows, heads) or fused_parts(module, layer)
    if parts is not None:
        return Role("fused", axis, parts=parts) if parts else Role("unknown", why=apart(module))
    size = own_size(module) or rows // (heads + 2 * kv_heads)
    if rows != (heads + 2 * kv_heads) * size or heads % kv_heads or isinstance(layer, CONVOLUTIONS):
        why = (
            f"{rows} rows are not known to be {heads} query heads and 2 x {kv_heads} key and value heads of size {size}"
        )
        return Role("unknown", why=why)
    if is_a(module, ("CodeGenAttention",)):  # made for four devices: four times queries, values, keys
        quarter = heads * size // 4
        return Role("fused", axis, parts=tuple((part, quarter, size) for part in ("query", "value", "key")) * 4)
    if not is_described(module) and getattr(module, "head_first", None) is not False:
        warnings.warn(
            f"{type(module).__name__}: running it alone did not tell in which order its fused projection has queries, keys and "
            "values; taken for all queries, then all keys, then all values. Before blocks are found, set head_first=True on "
            "the module if they lie head after head, else head_first=False",
            stacklevel=2,
        )
    turns = kv_heads if is_a(module, GROUPED) else 1
    queries, keys = heads * size // turns, kv_heads * size // turns
    return Role("fused", axis, parts=(("query", queries, size), ("key", keys, size), ("value", keys, size)) * turns)


def _head_after_head(module: nn.Module, rows: int, heads: int) -> tuple | None:
    """Query, key and value of each head in turn, where the module says so (timm: head_first; LeViT's key_dim, val_dim)."""
    key, value = (getattr(module, name, None) for name in ("key_dim", "val_dim"))
    if isinstance(key, int) and isinstance(value, int) and rows == heads * (2 * key + value):
        return (("query", key, key), ("key", key, key), ("value", value, value)) * heads
    if getattr(module, "head_first", None) is True and rows % (3 * heads) == 0:
        size = rows // (3 * heads)
        return (("query", size, size), ("key", size, size), ("value", size, size)) * heads
    return None


def _claim_projection(child: nn.Module, role: Role, claim: Claim) -> None:
    """Role for a projection's weight, and what follows for adapters on it."""
    base = projection_in(child)
    claim(weight_of(base), dataclasses.replace(role, axis=is_transposed(base)))
    for parameter in _unexplained(base) if weight_of(base) is None else ():
        claim(
            parameter,
            Role("unknown", why=f"a part of a projection of class {type(base).__name__} that has no plain weight"),
        )
    for layer in child.modules():
        if layer is not base and base_of(layer) is base:
            claim_adapters(layer, base, role, claim)


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
        if isinstance(inner, (CONVOLUTIONS, *NORMS, nn.RNNBase, nn.RNNCellBase)) or is_embedding(inner):
            continue
        for key, parameter in inner.named_parameters(recurse=False):
            if is_lazy(parameter):
                continue
            vector = parameter.numel() == max(parameter.shape, default=1)
            if not vector and not is_position_table(inner, key, parameter) and "bias" not in words(key):
                found.append(parameter)
    return found


def _has_matrix(module: nn.Module | None) -> bool:
    return module is not None and (
        is_projection(projection_in(module)) or any(p.ndim >= 2 for p in module.parameters())
    )
