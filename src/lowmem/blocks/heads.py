"""How many heads of which size an attention module has: from its attributes, else from those of its config."""

from __future__ import annotations

from torch import nn

HEADS = (
    "n_head", "num_heads", "num_attention_heads", "n_heads", "heads", "nhead", "attention_heads", "num_attn_heads",
)  # fmt: skip
KEY_HEADS = (
    "n_kv_head",
    "num_key_value_heads",
    "num_kv_heads",
    "n_kv_heads",
    "kv_heads",
    "n_query_groups",
    "num_heads_kv",
    "n_local_heads",
)
HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size", "d_kv")


def head_counts(module: nn.Module) -> tuple[int | None, int | None]:
    """(query heads, key heads) from the module, else from its config; None when neither says."""
    heads = first(module, HEADS)
    return heads, first(module, KEY_HEADS) or heads


def head_size(module: nn.Module, query_rows: int) -> tuple[int | None, str]:
    """(rows per query head, ""), or (None, what is wrong)."""
    heads, size = first(module, HEADS), own_size(module)
    if heads is None and size is None:
        return None, no_heads(module)
    if query_rows % (heads or 1) or (size and query_rows != (heads or query_rows // size) * size):
        parts = " ".join(filter(None, (heads and f"{heads} heads", size and f"of size {size}")))
        return None, f"{query_rows} query rows of {type(module).__name__} do not divide into {parts}"
    return size or query_rows // heads, ""


def own_size(module: nn.Module) -> int | None:
    """The size of a head where the module or its config names it."""
    return first(module, HEAD_SIZES)


def no_heads(module: nn.Module) -> str:
    """What to do about a module that does not tell."""
    return f"{type(module).__name__} does not say its number of heads (give it an attribute n_head)"


def apart(module: nn.Module) -> str:
    """Why the rows of a projection are no heads one after the other, where a trial showed it."""
    return f"rows of one head of {type(module).__name__} do not lie together"


def first(module: nn.Module, names: tuple[str, ...]) -> int | None:
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


def is_a(module: nn.Module, class_names: tuple[str, ...]) -> bool:
    """Whether its class, or a base class, has this name; the classes' packages need not be installed."""
    return any(kind.__name__ in class_names for kind in type(module).__mro__)
