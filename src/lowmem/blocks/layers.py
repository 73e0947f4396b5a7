"""What kind of layer a module is, where its weight and its output neurons lie, and the role that a parameter plays."""

from __future__ import annotations

import dataclasses
import re
import weakref
from collections.abc import Callable

import torch
from torch import nn

from lowmem.blocks.trial import on_trial

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.RMSNorm)
CONVOLUTIONS = nn.modules.conv._ConvNd
TRANSPOSED_CONVOLUTIONS = nn.modules.conv._ConvTransposeNd
WRAPPERS = ("base_layer", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
POSITION_TABLES = (  # those of is_position_table that their words do not tell
    "relative_position_bias_table", "rel_pos_h", "rel_pos_w", "emb_rel_k", "emb_rel_v", "time_embeddings", "level_embed",
    "latent_query", "modulation",
)  # fmt: skip
POSITION_WORDS = {"pos", "position", "positional"}
TABLE_WORDS = {"emb", "embed", "embedding", "embeddings", "enc", "encoding", "table"}
LEARNED_INPUTS = re.compile(
    r"(.*_)?(token|tokens|latents|prompt|prompts)(_\dd)?"
)  # detection_tokens, latents_1d, adaption_prompt: a row of their own too


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


def is_position_table(module: nn.Module, key: str, parameter: nn.Parameter) -> bool:
    """Whether a bare parameter holds one row per position or learned token, in its last axis: pos_embed (1, T, C),
    detection_tokens (1, T, C), latents (T, C), the embedding of a module called so. Not channels first, (1, C, H, W).
    """
    shape = parameter.shape
    if len(shape) < 2 or (len(shape) > 3 and shape[1] > shape[-1]):
        return False
    called = words(key) + (words(type(module).__name__) if key in ("embedding", "weight") else [])
    positions = POSITION_WORDS & set(called) and TABLE_WORDS & set(called)
    table = words(key)[-1:] == ["table"]  # scale_shift_table (6, C): a shift, a scale and a gate of each layer
    return key in POSITION_TABLES or bool(positions) or table or LEARNED_INPUTS.fullmatch(key) is not None


def is_linear(module: nn.Module) -> bool:
    """nn.Linear and everything of its shape (in_features, out_features), or a transposed Conv1D of Hugging Face."""
    return (hasattr(module, "out_features") and hasattr(module, "in_features")) or bool(is_transposed(module))


def is_projection(module: nn.Module) -> bool:
    """A linear layer, or a convolution used as one."""
    return is_linear(module) or (isinstance(module, CONVOLUTIONS) and not isinstance(module, TRANSPOSED_CONVOLUTIONS))


def is_embedding(module: nn.Module) -> bool:
    """A table of tokens: nn.Embedding and everything of its words, or a class called embedding with a padding token."""
    if hasattr(module, "num_embeddings") and hasattr(module, "embedding_dim"):
        return True
    weight = module._parameters.get("weight")
    called = words(type(module).__name__)[-1:] == ["embedding"] and hasattr(module, "padding_idx")
    return called and weight is not None and weight.ndim == 2


def is_transposed(module: nn.Module) -> int:
    """The axis of a layer's output neurons: 1 when its weight is (in, out), as in Hugging Face's Conv1D, else 0.

    The attributes in_features and out_features are trusted; a square layer of a third-party class is called to find out.
    """
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return 1
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Linear) or weight is None or is_lazy(weight) or weight.ndim != 2:
        return 0
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if tuple(weight.shape) != sizes:
        return 0
    return 1 if sizes[0] != sizes[1] else _multiplies_from_right(module, weight)


_tried: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@torch.no_grad()
def _multiplies_from_right(module: nn.Module, weight: nn.Parameter) -> int:
    """Whether a square layer computes x @ weight rather than x @ weight.T, from one call of it with other weights: those it
    has may be zero or symmetric, where both are the same."""
    if module not in _tried:
        _tried[module] = 0
        if type(weight) is nn.Parameter and weight.device.type != "meta" and not weight.is_complex():
            with on_trial(module):
                other = torch.randn_like(weight)
                module._parameters = {**module._parameters, "weight": nn.Parameter(other, requires_grad=False)}
                x = torch.linspace(-1, 1, weight.shape[0], dtype=weight.dtype, device=weight.device)[None]
                try:
                    y = (module(x) - module(torch.zeros_like(x))).flatten()
                except Exception:  # it takes other inputs
                    return 0
            ways = [(y - (x @ w).flatten()).abs().sum() for w in (other.T, other) if y.shape == weight.shape[:1]]
            _tried[module] = int(len(ways) == 2 and ways[1] < ways[0])
    return _tried[module]


def out_features(layer: nn.Module) -> int:
    """Outputs of a linear layer, by whichever name its class has for them."""
    return next(getattr(layer, key) for key in ("out_features", "nf", "out_channels") if hasattr(layer, key))


def is_lazy(p: nn.Parameter) -> bool:
    """Whether a parameter has no shape before the first forward (nn.LazyLinear)."""
    return isinstance(p, nn.parameter.UninitializedTensorMixin)


def weight_of(module: nn.Module) -> nn.Parameter | None:
    """The parameter behind module.weight, also under weight norm, spectral norm (both kinds of each) and pruning."""
    for key in ("weight", "weight_v", "weight_orig"):
        if module._parameters.get(key) is not None and not is_lazy(module._parameters[key]):
            return module._parameters[key]
    wrapped = getattr(module, "parametrizations", None)
    if isinstance(wrapped, nn.ModuleDict) and "weight" in wrapped and len(wrapped["weight"]) == 1:
        key = {"_WeightNorm": "original1", "_SpectralNorm": "original"}.get(type(wrapped["weight"][0]).__name__)
        return wrapped["weight"]._parameters.get(key)
    return None


def base_of(module: nn.Module) -> nn.Module:
    """The layer inside adapters (peft), torch.compile, and checkpoint or FSDP wrappers, else the module itself."""
    inner = next((module._modules[key] for key in WRAPPERS if module._modules.get(key) is not None), None)
    if inner is None and list(module._modules) == ["linear"] and not is_linear(module) and not module._parameters:
        inner = module._modules["linear"]  # one linear layer in a class of its own: Moshi, Gemma 4
    return module if inner is None else base_of(inner)


def projection_in(module: nn.Module) -> nn.Module:
    """The linear layer or convolution behind an attribute of attention, also inside a Sequential or class of its own that
    adds nothing but norms, activations and convolutions channel by channel; else base_of(module)."""
    base = base_of(module)
    if is_projection(base):
        return base
    inside = [m for m in base.modules() if is_projection(m) and weight_of(m) is not None]
    mixing = [m for m in inside if getattr(m, "groups", 1) == 1]
    known = {id(weight_of(m)) for m in inside}
    matrices = [
        p for p in base.parameters() if not is_lazy(p) and p.numel() > max(p.shape, default=1) and id(p) not in known
    ]
    return mixing[0] if len(mixing) == 1 and not matrices else base
