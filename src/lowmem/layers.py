"""What kind of layer a module is, where its weight and its output neurons lie, and the role that a parameter plays."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from torch import nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.RMSNorm)
CONVOLUTIONS = nn.modules.conv._ConvNd
TRANSPOSED_CONVOLUTIONS = nn.modules.conv._ConvTransposeNd
WRAPPERS = ("base_layer", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
POSITION_TABLES = (
    "pos_embed", "pos_embedding", "pos_emb", "position_embedding", "position_embeddings", "positional_embedding",
    "decoder_pos_embed", "relative_position_bias_table", "rel_pos_h", "rel_pos_w", "time_embeddings", "level_embed",
    "register_tokens", "reg_token", "query_tokens", "mask_tokens",  # learned tokens: a row of their own too
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Role:
    """name: see roles.py. axis: where output neurons lie (1 for transposed weights).
    head_dim: rows per head. parts: (query | key | value | neuron, rows, head_dim) of a fused projection, in order.
    merge: leading axes to merge (position tables of shape (1, positions, width); experts of shape (experts, out, in)).
    stack: 1 where the first axis counts experts and the other fields speak of one of them.
    why: for unknown, what is not known.
    """

    name: str
    axis: int = 0
    head_dim: int = 0
    parts: tuple[tuple[str, int, int], ...] = ()
    merge: int = 1
    stack: int = 0
    why: str = ""


Claim = Callable[[nn.Parameter | None, Role], None]


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


def base_of(module: nn.Module) -> nn.Module:
    """The layer inside adapters (peft), torch.compile, and checkpoint or FSDP wrappers, else the module itself."""
    inner = next((module._modules[key] for key in WRAPPERS if module._modules.get(key) is not None), None)
    return module if inner is None else base_of(inner)
