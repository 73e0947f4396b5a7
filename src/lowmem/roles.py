"""Which role each parameter plays, read off the module that owns it.

Roles: embedding, output (token tables), head (query and key), value, neuron (any other linear layer of a Transformer),
fused (several projections in one tensor), position (a bare table with one row per position or learned token), filter
(convolutions and recurrent layers), bias, other (norms, gains, scalars: one block per tensor in the paper's Algorithm
3), unknown.

Attention is recognised by its children: one query, one key and one value projection, or one fused projection, under the
attribute names that PyTorch, Hugging Face, timm, diffusers and this package use. Head sizes come from the attention
module or from its config, never from dim / heads when the module says otherwise. Attention that this does not explain
makes its parameters unknown, and partition() then asks the user.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

from torch import nn


@dataclasses.dataclass(frozen=True)
class Role:
    """name: see the module docstring. axis: where output neurons lie (1 for transposed weights).
    head_dim: rows per head. parts: (query | key | value, rows, head_dim) of a fused projection, in order.
    merge: leading axes to merge (position tables of shape (1, positions, width), stacked experts).
    why: for unknown, what is not known.
    """

    name: str
    axis: int = 0
    head_dim: int = 0
    parts: tuple[tuple[str, int, int], ...] = ()
    merge: int = 1
    why: str = ""


# Attribute names are compared word by word: q_proj, to_q, wq, q_lin and linear_q all leave the one word in PROJECTIONS.
PROJECTIONS = {
    **dict.fromkeys(("q", "wq", "qs", "query", "queries"), "query"),
    **dict.fromkeys(("k", "wk", "ks", "key", "keys"), "key"),
    **dict.fromkeys(("v", "wv", "vs", "value", "values"), "value"),
}
DECORATION = {
    "w", "proj", "projection", "linear", "lin", "layer", "to", "attn", "attention", "self", "head", "heads", "fc", "net",
    "dense", "conv",
}  # fmt: skip
ATTENTION_WORDS = ("attention", "attn", "mha", "mhsa", "gqa", "mqa", "mla")
# Fused projections under these names hold all queries, then all keys, then all values: GPT-2; timm, BLIP; Phi-3; MPT and
# ModernBERT; lucidrains.
CONCATENATED = ("c_attn", "qkv", "qkv_proj", "Wqkv", "to_qkv")
# These classes hold the queries, key and value of key head 0, then of key head 1, ...
GROUPED = (
    "GPTNeoXAttention", "GPTNeoXJapaneseAttention", "BloomAttention", "PersimmonAttention", "FalconAttention",
    "GPTBigCodeAttention", "MiniMaxLightningAttention",
)  # fmt: skip
JOINED = re.compile(r"w?(qkv|kqv|qk|kv).?")  # other words for several projections in one
POSITION_TABLES = (
    "pos_embed", "pos_embedding", "pos_emb", "position_embedding", "position_embeddings", "positional_embedding",
    "decoder_pos_embed", "relative_position_bias_table", "rel_pos_h", "rel_pos_w", "time_embeddings", "level_embed",
    "register_tokens", "reg_token", "query_tokens", "mask_tokens",  # learned tokens: a row of their own too
)  # fmt: skip
OUTPUTS = (
    "lm_head", "output", "head", "embed_out", "proj_out", "to_logits", "output_layer", "output_projection", "unembed",
    "decoder", "generator",
)  # fmt: skip
HEADS = (
    "n_head", "num_heads", "num_attention_heads", "n_heads", "heads", "nhead", "attention_heads", "num_attn_heads",
)  # fmt: skip
KEY_HEADS = ("n_kv_head", "num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size", "d_kv")
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.RMSNorm)
CONVOLUTIONS = nn.modules.conv._ConvNd
TRANSPOSED_CONVOLUTIONS = nn.modules.conv._ConvTransposeNd
WRAPPERS = ("base_layer", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)

Claim = Callable[[nn.Parameter | None, Role], None]


def find_roles(model: nn.Module) -> tuple[dict[int, Role], bool]:
    """({id(parameter): Role} of every parameter, whether the model has attention, that is, is a Transformer)."""
    roles: dict[int, Role] = {}

    def claim(parameter: nn.Parameter | None, role: Role) -> None:
        if parameter is None:
            return
        before = roles.get(id(parameter))
        if before is None or (before.name in ("output", "neuron") and role.name == "embedding"):
            roles[id(parameter)] = role  # a tied table counts as embedding, wherever it was registered first

    attention = find_attention(model)
    for module in attention:
        _claim_attention(module, claim)
    modules = list(model.modules())
    for module in modules:
        if is_embedding(module):
            claim(weight_of(module), Role("embedding"))
        for parameter in getattr(module, "lora_embedding_A", {}).values():  # peft: (rank, rows of the table)
            claim(parameter, Role("embedding", axis=1))
        for parameter in getattr(module, "lora_embedding_B", {}).values():  # (width, rank)
            claim(parameter, Role("neuron"))
    outputs = _output_layers(model)
    for module in modules:
        _claim_layer(module, claim, module in outputs)
        for key, parameter in module.named_parameters(recurse=False):
            claim(parameter, _bare_role(module, key, parameter, bool(attention)))
    return roles, bool(attention)


def _claim_layer(module: nn.Module, claim: Claim, is_output: bool) -> None:
    """Roles of the weights of torch's own kinds of layers."""
    weight = weight_of(module)
    if is_linear(module) and weight is not None and weight.ndim == 2:
        claim(weight, Role("output" if is_output else "neuron", is_transposed(module)))
    elif isinstance(module, nn.Bilinear):
        claim(weight, Role("neuron"))
    elif isinstance(module, CONVOLUTIONS):
        transposed = isinstance(module, TRANSPOSED_CONVOLUTIONS)  # weight (in, out / groups, ...): groups mix neurons
        claim(weight, Role("filter", int(transposed)) if not transposed or module.groups == 1 else Role("other"))
    elif isinstance(module, nn.RNNBase):
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 2:
                claim(parameter, Role("filter"))
    elif isinstance(module, NORMS):
        claim(weight, Role("other"))
    elif weight is not None and weight.ndim == 2 and getattr(module, "num_experts", 0) == len(weight):
        claim(weight, Role("neuron"))  # router of a mixture of experts, (experts, width)
    elif getattr(module, "is_transposed", None) is False and hasattr(module, "has_gate"):  # Hugging Face experts
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 3:  # (experts, out, in)
                claim(parameter, Role("neuron", merge=2))


def _bare_role(module: nn.Module, key: str, parameter: nn.Parameter, is_transformer: bool) -> Role:
    """Role of a parameter that no kind of layer explains; unknown when a Transformer's structure leaves it open."""
    shape = parameter.shape
    if key in POSITION_TABLES and len(shape) >= 2:
        return Role("position", merge=len(shape) - 1)
    if "bias" in words(key):
        return Role("bias")
    vector = parameter.numel() == max(shape, default=1)  # gains, layer scales, class tokens, magnitudes of weight norm
    if vector or not is_transformer:
        return Role("other")
    what = f"a bare parameter of shape {tuple(shape)} in {type(module).__name__}, whose blocks no rule tells"
    return Role("unknown", why=what)


# -- attention -------------------------------------------------------------------------------------------------------


def find_attention(model: nn.Module) -> list[nn.Module]:
    """Every attention module of the model, also those of a shape that only a user can explain."""
    found = {id(m): m for m in model.modules() if isinstance(m, nn.MultiheadAttention) or _projections(m)}
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
        elif known and is_projection(_base(child)):
            fused["fused"] = child
        elif len({"query", "key", "value"} & set(kinds)) > 1 or any(JOINED.fullmatch(kind) for kind in kinds):
            joined["unknown"] = child
    if len(exact) == 3 and not joined and all(is_projection(_base(child)) for child in exact.values()):
        return exact
    if fused:
        return {**fused, **({"query": exact["query"]} if "query" in exact else {})}
    return joined or ({"unknown": exact["query"]} if len(exact) == 3 else {})


def _claim_attention(module: nn.Module, claim: Claim) -> None:
    """Roles of query, key, value or fused projections of one attention module."""
    if isinstance(module, nn.MultiheadAttention):
        size, rows = module.embed_dim // module.num_heads, module.embed_dim
        claim(module.in_proj_weight, Role("fused", parts=tuple((n, rows, size) for n in ("query", "key", "value"))))
        claim(module.q_proj_weight, Role("head", head_dim=size))
        claim(module.k_proj_weight, Role("head", head_dim=size))
        claim(module.v_proj_weight, Role("value"))
        return
    found = _projections(module)
    if "fused" in found:
        _claim_projection(found["fused"], fused_role(module, _base(found["fused"])), claim)
    elif "value" not in found:
        why = f"{type(module).__name__} is attention in which no query, key and value projection was found"
        for parameter in _unexplained(module):
            claim(parameter, Role("unknown", why=why))
        return
    if "query" not in found:
        return  # with a fused projection, only GPT-2's cross attention keeps a query apart
    rows = {out_features(_base(found[name])) for name in ("query", "key") if name in found}
    size, why = head_size(module, out_features(_base(found["query"])))
    for name, child in module._modules.items():
        kinds = {PROJECTIONS[word] for word in words(name) if word in PROJECTIONS}
        if len(kinds) != 1 or child is found.get("fused") or not is_projection(_base(child)):
            continue
        if kinds == {"value"}:
            _claim_projection(child, Role("value"), claim)
        elif size and out_features(_base(child)) in rows and out_features(_base(child)) % size == 0:
            _claim_projection(child, Role("head", head_dim=size), claim)
        else:
            why = (
                why
                or f"{out_features(_base(child))} rows of {type(module).__name__} are not known to be heads of size {size}"
            )
            _claim_projection(child, Role("unknown", why=why), claim)


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
    base = _base(child)
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
            if not vector and key not in POSITION_TABLES and "bias" not in words(key):
                found.append(parameter)
    return found


# -- layers ----------------------------------------------------------------------------------------------------------


def words(name: str) -> list[str]:
    """Lower-case words of an attribute or class name: q_proj -> q, proj; CausalSelfAttention -> causal, self, attention."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def is_linear(module: nn.Module) -> bool:
    """nn.Linear and everything of its shape (in_features, out_features), or a transposed Conv1D of Hugging Face."""
    return (hasattr(module, "out_features") and hasattr(module, "in_features")) or bool(is_transposed(module))


def is_projection(module: nn.Module) -> bool:
    """A linear layer, or a convolution that stands in for one."""
    return is_linear(module) or (isinstance(module, CONVOLUTIONS) and not isinstance(module, TRANSPOSED_CONVOLUTIONS))


def is_embedding(module: nn.Module) -> bool:
    return hasattr(module, "num_embeddings") and hasattr(module, "embedding_dim")


def is_transposed(module: nn.Module) -> int:
    """The axis of a layer's output neurons: 1 when its weight is (in, out), as in Hugging Face's Conv1D, else 0."""
    return int(type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


def out_features(layer: nn.Module) -> int:
    return next(getattr(layer, key) for key in ("out_features", "nf", "out_channels") if hasattr(layer, key))


def weight_of(module: nn.Module) -> nn.Parameter | None:
    """The parameter behind module.weight, also under weight norm, spectral norm (both kinds of each) and pruning."""
    for key in ("weight", "weight_v", "weight_orig"):
        if module._parameters.get(key) is not None:
            return module._parameters[key]
    wrapped = getattr(module, "parametrizations", None)
    if isinstance(wrapped, nn.ModuleDict) and "weight" in wrapped and len(wrapped["weight"]) == 1:
        key = {"_WeightNorm": "original1", "_SpectralNorm": "original"}.get(type(wrapped["weight"][0]).__name__)
        return wrapped["weight"]._parameters.get(key)
    return None


def _has_matrix(module: nn.Module | None) -> bool:
    return module is not None and (is_projection(_base(module)) or any(p.ndim >= 2 for p in module.parameters()))


def _base(module: nn.Module) -> nn.Module:
    """The layer inside adapters (peft), torch.compile, and checkpoint or FSDP wrappers, else the module itself."""
    inner = next((module._modules[key] for key in WRAPPERS if module._modules.get(key) is not None), None)
    return module if inner is None else _base(inner)


def _is_a(module: nn.Module, class_names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in class_names for kind in type(module).__mro__)


def _first(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first positive whole number under one of the names, in the module, else in its config."""
    for place in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(place, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _output_layers(model: nn.Module) -> set[nn.Module]:
    """Layers that map to a vocabulary: what a model inside says, and layers called so with one row per token."""
    found = set()
    for module in model.modules():
        getter = getattr(module, "get_output_embeddings", None)
        if callable(getter):
            try:
                layer = getter()
            except (NotImplementedError, AttributeError):
                continue
            if isinstance(layer, nn.Module):
                found.add(_base(layer))
    tables = {module.num_embeddings for module in model.modules() if is_embedding(module)}
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in OUTPUTS and is_linear(module) and out_features(module) in tables:
            found.add(module)
    return found
