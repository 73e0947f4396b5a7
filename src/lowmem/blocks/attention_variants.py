"""Attention whose projections have a layout of their own: latent attention, delta networks and a few more.

Each function below knows one kind and gives {child: role}, or {} for any other module. No known module is of two kinds;
the first that answers counts.
"""

from __future__ import annotations

from collections.abc import Set

from torch import nn

from lowmem.blocks.attention_probe import first_head, key_value_parts
from lowmem.blocks.heads import apart, first, head_counts, head_size, is_a, own_size
from lowmem.blocks.layers import Role, base_of, is_projection, out_features, projection_in

# These classes hold the query and the gate of head 0, then of head 1, ...
GATED_QUERIES = ("Qwen3NextAttention", "Qwen3_5Attention", "Qwen3_5MoeAttention", "Qwen4ExpTextAttention")
QUERY_AND_REST = (("to_q", "to_kv"), ("q", "kv"), ("q_proj", "kv_proj"), ("wq", "wkv"))


def layout(module: nn.Module) -> dict[str, Role]:
    """{child: role} of attention with a layout of its own; {} for any other module."""
    children = module._modules.keys()
    return next(filter(None, (kind(module, children) for kind in KINDS)), {})


def latent_attention(module: nn.Module, children: Set[str]) -> dict[str, Role]:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Queries of all heads, maybe from a latent vector; the latent of keys and values beside the one rotary key that all
    heads share; from that latent, key and value of each head in turn. Rows that make a latent are neurons.
    """
    if not {"kv_a_proj_with_mqa", "kv_b_proj"} <= children:
        return {}
    heads, _ = head_counts(module)
    sizes = [first(module, (key,)) for key in ("qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "qk_rope_head_dim")]
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


def delta_network(module: nn.Module, children: Set[str]) -> dict[str, Role]:
    """Gated delta networks.

    Query, key, value and gate of each key head in turn (Qwen3-Next); or all queries, all keys, all values, and the gate
    apart (Qwen3.5); or each by itself (Olmo hybrid).
    """
    if not {"in_proj_qkvz", "in_proj_qkv"} & children and not ("q_proj" in children and hasattr(module, "head_k_dim")):
        return {}
    sizes = [first(module, (key,)) for key in ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")]
    if not all(sizes) or sizes[1] % sizes[0]:
        return {}
    heads, value_heads, size, value = sizes
    if "in_proj_qkvz" in children:
        rows = value_heads // heads * value  # several value heads share a key head
        turn = (("query", size, size), ("key", size, size), ("value", rows, rows), ("neuron", rows, rows))
        return {"in_proj_qkvz": Role("fused", parts=turn * heads)}
    if "q_proj" in children:
        return {"q_proj": Role("head", head_dim=size), "k_proj": Role("head", head_dim=size), "v_proj": Role("value")}
    rows = value_heads * value
    parts = (("query", heads * size, size), ("key", heads * size, size), ("value", rows, rows))
    return {"in_proj_qkv": Role("fused", parts=parts)}


def gated_queries(module: nn.Module, children: Set[str]) -> dict[str, Role]:
    """Full attention beside gated delta networks: query and gate of each head in turn."""
    if not is_a(module, GATED_QUERIES) or not (size := own_size(module)):
        return {}
    turn = (("query", size, size), ("neuron", size, size))
    queries = Role("fused", parts=turn * (head_counts(module)[0] or 1))
    return {"q_proj": queries, "k_proj": Role("head", head_dim=size), "v_proj": Role("value")}


def indexer(module: nn.Module, children: Set[str]) -> dict[str, Role]:
    """The indexer of sparse attention (DeepSeek-V3.2): queries of its heads and one key."""
    if not {"wq_b", "wk", "weights_proj"} <= children or not (size := own_size(module)):
        return {}
    return dict.fromkeys(("wq_b", "wk"), Role("head", head_dim=size))


def deformable(module: nn.Module, children: Set[str]) -> dict[str, Role]:
    """Deformable attention (arXiv 2010.04159, equation 2) has no keys: offsets and weights are linear in the query."""
    return {"value_proj": Role("value")} if {"sampling_offsets", "attention_weights"} <= children else {}


def disentangled(module: nn.Module, children: Set[str]) -> dict[str, Role]:
    """DeBERTa (arXiv 2006.03654, equation 4): query, key and value of each head in turn, a key and a query of positions.

    in_proj (3 x heads x size, width), pos_proj and pos_q_proj (heads x size, width).
    """
    if "in_proj" not in children or not is_a(module, ("DisentangledSelfAttention",)):
        return {}
    heads, _ = head_counts(module)
    rows = out_features(base_of(module._modules["in_proj"])) // 3
    if not heads or rows % heads:
        return {}
    size = rows // heads
    head = Role("head", head_dim=size)
    turn = (("query", size, size), ("key", size, size), ("value", size, size))
    return {"in_proj": Role("fused", parts=turn * heads), "pos_proj": head, "pos_q_proj": head}


def queries_beside_keys_and_values(module: nn.Module, children: Set[str]) -> dict[str, Role]:
    """Queries (heads x size, width), and keys and values in one projection, in the order that a trial shows.

    Where it shows none, lucidrains' to_kv (2 x heads x size, width) has all keys, then all values; others are not known.
    """
    names = next((pair for pair in QUERY_AND_REST if children >= set(pair)), None)
    if names is None or children & {"to_k", "k", "k_proj", "wk"}:
        return {}
    queries, both = (projection_in(module._modules[name]) for name in names)
    if not (is_projection(queries) and is_projection(both)):
        return {}
    size, _ = head_size(module, out_features(queries))
    rows = out_features(both) // 2
    if not size or rows % size or out_features(both) % 2:
        return {}
    parts = key_value_parts(module, both, out_features(queries) // size, size)
    if parts == () or first_head(module, queries, size) is False:
        return dict.fromkeys(names, Role("unknown", why=apart(module)))
    if parts is None and names != QUERY_AND_REST[0]:
        return {}
    parts = parts or (("key", rows, size), ("value", rows, size))
    return {names[0]: Role("head", head_dim=size), names[1]: Role("fused", parts=parts)}


KINDS = (
    latent_attention,
    delta_network,
    gated_queries,
    indexer,
    deformable,
    disentangled,
    queries_beside_keys_and_values,
)
