"""Which role each parameter plays, read off the module that owns it.

Roles: embedding, output (token tables), head (query and key), value, neuron (any other linear layer of a Transformer),
fused (several projections in one tensor), position (a table with one row per position), bias, other (norms,
convolutions, scalars: one block per tensor in the paper's Algorithm 3).

Attention is recognised by its children: a query, a key and a value projection, or one fused projection, under the
attribute names that PyTorch, Hugging Face, timm and this package use. Head sizes come from the attention module itself
or from its config, never from dim / heads when the module says otherwise.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from lowmem.blocks import Misfit


@dataclasses.dataclass(frozen=True)
class Role:
    """name: see the module docstring. axis: where output neurons lie (1 for transposed Conv1D weights).
    head_dim: rows per head. parts: (query | key | value, rows, head_dim) of a fused projection, in order.
    merge: leading axes to merge (position tables of shape (1, positions, width)).
    """

    name: str
    axis: int = 0
    head_dim: int = 0
    parts: tuple[tuple[str, int, int], ...] = ()
    merge: int = 1


# (query, key, value) children of attention modules: Llama, Mistral, Qwen, Gemma, Phi, OPT, Bart; ours and official
# Adam-mini; BERT, ViT; T5; DistilBERT; diffusers.
SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("wq", "wk", "wv"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
)
# Fused projections whose rows are all queries, then all keys, then all values: GPT-2; timm and ours; Phi-3; MPT, ModernBERT.
CONCATENATED = ("c_attn", "qkv", "qkv_proj", "Wqkv", "in_proj")
# Fused projections that hold query, key and value of head 0, then of head 1, ...: GPT-NeoX, BLOOM.
INTERLEAVED = ("query_key_value",)
INTERLEAVED_MODELS = ("gpt_neox", "gpt_neox_japanese", "bloom")
POSITION_TABLES = (
    "pos_embed",
    "pos_embedding",
    "position_embedding",
    "position_embeddings",
    "positional_embedding",
    "relative_position_bias_table",
)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.RMSNorm)
CONVOLUTIONS = nn.modules.conv._ConvNd


def find_roles(model: nn.Module, known_by_hand: set[str] = frozenset(), tolerant: bool = False):
    """({id(parameter): Role}, whether the model is a Transformer).

    known_by_hand: names that overrides place, which therefore need no rule. tolerant: unknown becomes "other" (the
    per-tensor scheme needs no structure). Raises Misfit otherwise.
    """
    roles: dict[int, Role] = {}
    attention = [(name, module) for name, module in model.named_modules() if _looks_like_attention(module)]
    names = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    first_name = {id(p): name for name, p in model.named_parameters()}
    is_transformer = bool(attention)
    by_hand = {key for key, name in first_name.items() if name in known_by_hand}

    def claim(parameter: nn.Parameter | None, role: Role) -> None:
        if parameter is None:
            return
        before = roles.get(id(parameter))
        if before is None or (before.name in ("output", "neuron") and role.name == "embedding"):
            roles[id(parameter)] = role  # a tied table counts as embedding, wherever it was registered first

    for path, module in attention:
        try:
            _claim_attention(path, module, claim)
        except Misfit:
            own = [p for p in module.parameters() if p.requires_grad and id(p) not in by_hand]
            if own and not tolerant:
                raise
    output = _output_layer(model)
    for _, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            claim(module.weight, Role("embedding"))
    for module in model.modules():
        bare = dict(module.named_parameters(recurse=False))
        if is_linear(module):
            axis = 1 if is_transposed(module) else 0
            claim(bare.pop("weight", None), Role("output" if module is output else "neuron", axis))
        elif isinstance(module, nn.Bilinear):
            claim(bare.pop("weight", None), Role("neuron"))
        elif isinstance(module, (*NORMS, CONVOLUTIONS, nn.RNNBase)) or type(module).__name__.endswith("Norm"):
            for key in [k for k in bare if k != "bias"]:
                claim(bare.pop(key), Role("other"))
        for key, parameter in bare.items():
            if id(parameter) in roles or id(parameter) in by_hand or not parameter.requires_grad:
                continue
            role = _bare_role(key, parameter, is_transformer)
            if role is None and tolerant:
                role = Role("other")
            if role is None:
                name = names[id(parameter)]
                raise Misfit(
                    f"{name}: a bare parameter of shape {tuple(parameter.shape)} in {type(module).__name__}, whose "
                    f"blocks no rule tells; pass overrides={{{name!r}: 'row'}} (or 'column', 'tensor', 'coordinate', "
                    "or a number of equal blocks)"
                )
            claim(parameter, role)
    return roles, is_transformer


def _bare_role(key: str, parameter: nn.Parameter, is_transformer: bool) -> Role | None:
    """Role of a parameter that hangs on a module directly; None when a Transformer's structure leaves it open."""
    shape = parameter.shape
    if key in ("bias", "in_proj_bias", "bias_k", "bias_v", "bias_ih", "bias_hh"):
        return Role("bias")
    if key in POSITION_TABLES and len(shape) >= 2:
        return Role("position", merge=len(shape) - 1)
    one_row = len(shape) < 2 or parameter.numel() == shape[-1]  # gains, layer scales, class tokens
    return Role("other") if one_row or not is_transformer else None


def is_linear(module: nn.Module) -> bool:
    """nn.Linear and everything of its shape: a 2-D weight with in_features/out_features, or a transposed Conv1D."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
        return False
    return hasattr(module, "out_features") or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Hugging Face Conv1D stores (in, out); its nf attribute is the number of output neurons."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _base(module: nn.Module) -> nn.Module:
    """The wrapped layer of an adapter (peft names it base_layer), else the module itself."""
    return getattr(module, "base_layer", module)


def _children(module: nn.Module, names) -> list[nn.Module] | None:
    found = [getattr(module, name, None) for name in names]
    return found if all(isinstance(c, nn.Module) and is_linear(_base(c)) for c in found) else None


def _looks_like_attention(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    if any(_children(module, names) for names in SEPARATE):
        return True
    if any(_children(module, (name,)) for name in CONCATENATED + INTERLEAVED):
        return True
    named_so = type(module).__name__.endswith("Attention")
    return named_so and any(is_linear(_base(child)) for child in module.children())


def _claim_attention(path: str, module: nn.Module, claim) -> None:
    """Give query, key, value or fused projections of one attention module their roles."""
    if isinstance(module, nn.MultiheadAttention):
        size = module.embed_dim // module.num_heads
        if module.in_proj_weight is not None:
            rows = module.embed_dim
            claim(module.in_proj_weight, Role("fused", parts=tuple((n, rows, size) for n in ("query", "key", "value"))))
        else:
            claim(module.q_proj_weight, Role("head", head_dim=size))
            claim(module.k_proj_weight, Role("head", head_dim=size))
            claim(module.v_proj_weight, Role("value"))
        return
    for names in SEPARATE:
        children = _children(module, names)
        if children:
            size = head_size(path, module, out_features(_base(children[0])), names[0])
            for child, role in zip(children, ("head", "head", "value")):
                _claim_projection(child, Role(role, head_dim=size), claim)
            return
    for name in CONCATENATED + INTERLEAVED:
        if _children(module, (name,)):
            child = getattr(module, name)
            _claim_projection(child, _fused_role(path, module, name, _base(child)), claim)
            query = getattr(module, "q_attn", None)  # GPT-2 cross attention keeps its query apart
            if isinstance(query, nn.Module) and is_linear(query):
                size = head_size(path, module, out_features(query), "q_attn")
                _claim_projection(query, Role("head", head_dim=size), claim)
            return
    child_name = next(n for n, c in module.named_children() if is_linear(_base(c)))
    raise Misfit(
        f"{path}.{child_name}.weight: {type(module).__name__} is attention of an unknown shape (no query, key and value "
        f"projections found); pass overrides={{'{path}.{child_name}.weight': <number of heads>, ...}} for its parameters"
    )


def _fused_role(path: str, module: nn.Module, name: str, layer: nn.Module) -> Role:
    """Parts of a fused projection in the order its rows hold them."""
    axis, rows = (1 if is_transposed(layer) else 0), out_features(layer)
    config = getattr(module, "config", None)
    model_type = getattr(config, "model_type", "")
    heads, kv_heads = head_counts(module)
    if heads is None:
        raise Misfit(_no_heads(path, module, name))
    if name in INTERLEAVED:
        if model_type not in INTERLEAVED_MODELS:
            raise Misfit(
                f"{path}.{name}.weight: the row order of this fused projection is not known for model type "
                f"{model_type!r}; pass overrides={{'{path}.{name}.weight': 'row'}} or a number of equal blocks"
            )
        size = rows // (3 * heads)
        return Role("fused", axis, parts=tuple((part, size, size) for part in ("query", "key", "value")) * heads)
    if getattr(module, "is_cross_attention", False):  # GPT-2 cross attention: keys and values only
        half = rows // 2
        return Role("fused", axis, parts=(("key", half, half // heads), ("value", half, half // heads)))
    size = _explicit_head_size(module) or rows // (heads + 2 * kv_heads)
    if rows != (heads + 2 * kv_heads) * size or "CodeGen" in type(module).__name__:
        raise Misfit(
            f"{path}.{name}.weight: {rows} rows are not {heads} query and 2 x {kv_heads} key/value heads of size {size}; "
            f"pass overrides={{'{path}.{name}.weight': 'row'}} or a number of equal blocks"
        )
    return Role(
        "fused",
        axis,
        parts=(("query", heads * size, size), ("key", kv_heads * size, size), ("value", kv_heads * size, size)),
    )


def _claim_projection(child: nn.Module, role: Role, claim) -> None:
    """Role for a projection's weight; adapters on it (LoRA) get the role where their rows are the projection's rows."""
    base = _base(child)
    axis = 1 if is_transposed(base) else 0
    claim(base.weight, dataclasses.replace(role, axis=axis))
    if base is child:
        return
    for inner in child.modules():
        if inner is not base and is_linear(inner):
            same_rows = out_features(inner) == out_features(base)  # the B matrix of LoRA: (out, rank)
            claim(inner.weight, dataclasses.replace(role, axis=0) if same_rows else Role("neuron"))


def out_features(layer: nn.Module) -> int:
    return layer.nf if is_transposed(layer) else layer.weight.shape[0]


def head_counts(module: nn.Module) -> tuple[int | None, int | None]:
    """(query heads, key heads) from the module, else from its config; None when nobody says."""
    places = [module, getattr(module, "config", None)]
    heads = _first(places, ("n_head", "num_heads", "num_attention_heads", "n_heads", "heads"))
    kv_heads = _first(places, ("n_kv_head", "num_key_value_heads", "num_kv_heads", "n_kv_heads"))
    return heads, kv_heads or heads


def _explicit_head_size(module: nn.Module) -> int | None:
    places = [module, getattr(module, "config", None)]
    return _first(places, ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size", "d_kv"))


def head_size(path: str, module: nn.Module, query_rows: int, name: str) -> int:
    """Rows per query head: said by the module, or its query rows divided by its heads."""
    size = _explicit_head_size(module)
    if size:
        return size
    heads, _ = head_counts(module)
    if heads is None:
        raise Misfit(_no_heads(path, module, name))
    if query_rows % heads:
        raise Misfit(
            f"{path}.{name}.weight: {query_rows} rows do not divide into {heads} heads; check the model's config"
        )
    return query_rows // heads


def _no_heads(path: str, module: nn.Module, name: str) -> str:
    return (
        f"{path}.{name}.weight: {type(module).__name__} does not say its number of heads; give the module an attribute "
        f"n_head, or pass overrides={{'{path}.{name}.weight': <number of heads>, ...}}"
    )


def _first(places, names) -> int | None:
    for place in places:
        for name in names:
            value = getattr(place, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that maps to the vocabulary: what the model says, or a layer called so with one row per token."""
    getter = getattr(model, "get_output_embeddings", None)
    if callable(getter):
        try:
            found = getter()
        except (NotImplementedError, AttributeError):
            found = None
        if isinstance(found, nn.Module):
            return _base(found)
    tables = {m.num_embeddings for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    for name, module in model.named_modules():
        named_so = name.rsplit(".", 1)[-1] in ("lm_head", "output", "head", "embed_out")
        if named_so and is_linear(module) and out_features(module) in tables:
            return module
    return None
