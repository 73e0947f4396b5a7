"""Which role each parameter plays, read off the module that owns it.

Roles: embedding, output (token tables), head (query and key), value, neuron (any other linear layer of a Transformer),
fused (several projections in one tensor), position (a bare table with one row per position or learned token), filter
(convolutions and recurrent layers), bias, other (norms, gains, scalars: one block per tensor in the paper's Algorithm
3), unknown.

Attention has files of its own: attention.py, attention_variants.py, heads.py.
"""

from __future__ import annotations

from torch import nn

from lowmem.blocks.adapters import claim_adapters
from lowmem.blocks.attention import claim_attention, find_attention
from lowmem.blocks.layers import (
    CONTAINERS,
    CONVOLUTIONS,
    NORMS,
    TRANSPOSED_CONVOLUTIONS,
    Claim,
    Role,
    base_of,
    is_embedding,
    is_lazy,
    is_linear,
    is_position_table,
    is_transposed,
    out_features,
    weight_of,
    words,
)

OUTPUTS = (
    "lm_head", "output", "head", "embed_out", "proj_out", "to_logits", "output_layer", "output_projection", "unembed",
    "decoder", "generator",
)  # fmt: skip
# Experts of a mixture that do not say whether their weights are (experts, in, out).
TRANSPOSED = {"Llama4TextExperts": True, "LongcatFlashExperts": False, "JetMoeParallelExperts": False}
# Bare matrices of CLIP and its kin, (width, out), multiplied from the right.
RIGHT = {"proj", "text_projection", "image_projection", "visual_projection"}


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
        claim_attention(module, claim)
    modules = list(model.modules())
    for module in modules:
        if is_embedding(module):
            claim(weight_of(module), Role("embedding"))
        if (base := base_of(module)) is not module:
            claim_adapters(module, base, Role("neuron"), claim)
    outputs = _output_layers(model)
    for module in modules:
        _claim_layer(module, claim, module in outputs)
        for key, parameter in module.named_parameters(recurse=False):
            if is_lazy(parameter):
                continue  # it gets its role when it has a shape
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
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 2:
                claim(parameter, Role("filter"))
    elif isinstance(module, NORMS):
        claim(weight, Role("other"))
    elif weight is not None and weight.ndim == 2 and getattr(module, "num_experts", 0) == len(weight):
        claim(weight, Role("neuron"))  # router of a mixture of experts, (experts, width)
    elif type(module).__name__ == "CsmCodebooksHead":  # one output layer per codebook: (codebooks, width, tokens)
        claim(weight, Role("output", axis=1, stack=1))
    elif (transposed := _experts_transposed(module)) is not None:
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 3:  # (experts, in, out) or (experts, out, in)
                claim(parameter, Role("neuron", 1, stack=1) if transposed else Role("neuron", merge=2))


def _experts_transposed(module: nn.Module) -> bool | None:
    """Whether a mixture's stacked weights are (experts, in, out): by its class, by what it says itself (Hugging Face), or by
    its sizes where these differ; None for any other module.
    """
    if type(module).__name__ in TRANSPOSED:
        return TRANSPOSED[type(module).__name__]
    transposed = getattr(module, "is_transposed", None)
    if isinstance(transposed, bool) and hasattr(module, "has_gate"):
        return transposed
    sizes = [getattr(module, key, None) for key in ("num_experts", "intermediate_dim", "hidden_dim")]
    both = module._parameters.get("gate_up_proj")  # gate and up: (experts, 2 intermediate, hidden), or transposed
    if both is None or None in sizes or sizes[2] == 2 * sizes[1]:
        return None
    layouts = {(sizes[0], 2 * sizes[1], sizes[2]): False, (sizes[0], sizes[2], 2 * sizes[1]): True}
    return layouts.get(tuple(both.shape))


def _bare_role(module: nn.Module, key: str, parameter: nn.Parameter, is_transformer: bool) -> Role:
    """Role of a parameter that no kind of layer explains; unknown when a Transformer's structure leaves it open."""
    shape = parameter.shape
    if is_position_table(module, key, parameter):
        return Role("position", merge=len(shape) - 1)
    if "bias" in words(key):
        return Role("bias")
    if key == "mm_input_projection_weight":  # Gemma 3 multiplies from the right: (vision width, text width)
        return Role("neuron", axis=1)
    if key in RIGHT and len(shape) == 2 and shape[0] != shape[1] and shape[0] in _norm_widths(module):
        return Role("neuron", axis=1)
    vector = parameter.numel() == max(shape, default=1)  # gains, layer scales, class tokens, magnitudes of weight norm
    if vector or not is_transformer:
        return Role("other")
    what = f"a bare parameter of shape {tuple(shape)} in {type(module).__name__}, whose blocks no rule tells"
    return Role("unknown", why=what)


def _norm_widths(module: nn.Module) -> set[int]:
    """How wide the norms in a module are: CLIP's projections take what a norm beside them gives."""
    norms = [m for m in module.modules() if words(type(m).__name__)[-1:] == ["norm"]]
    return {p.numel() for norm in norms for p in norm.parameters(recurse=False) if not is_lazy(p)}


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
                found.add(base_of(layer))
    tables = {len(weight) for weight in map(weight_of, filter(is_embedding, model.modules())) if weight is not None}
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in OUTPUTS and is_linear(module) and out_features(module) in tables:
            found.add(module)
    return found


def joined_layers(model: nn.Module, roles: dict[int, Role]) -> dict[str, str]:
    """{name of a weight: its module's class} where one layer seems to feed several uses, without being known attention.

    Such a module holds one linear layer (width -> rows) and one back (inner -> width), and rows are more than inner but
    not twice as many (a gate): what inner takes is made of parts of rows.
    """
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, CONTAINERS):
            continue
        layers = {name: child for name, child in module._modules.items() if child is not None and is_linear(child)}
        back = [child for child in layers.values() if roles.get(id(weight_of(child)), Role("other")).name == "neuron"]
        for name, child in layers.items():
            if child not in back or not hasattr(child, "in_features"):
                continue
            rows, width = out_features(child), child.in_features
            others = [other for other in back if other is not child and hasattr(other, "in_features")]
            inner = [other.in_features for other in others if out_features(other) == width]
            used = {other.in_features for other in others}
            if inner and not {rows, rows // 2} & used and rows > max(inner):
                found[f"{path}.{name}.weight".removeprefix(".")] = type(module).__name__
    return found
