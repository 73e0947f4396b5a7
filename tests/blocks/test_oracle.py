"""An oracle for the partition: which rows of which weight feed a head, read off gradients where attention takes q, k and v.

It knows nothing of names or layouts. Each linear layer's input is cut off from what comes before, so that the gradient of
one head reaches the last layer before attention alone; the rows with a gradient are the head's.
"""

import contextlib
import warnings

import pytest
import torch
import transformers
from checkout import ROOT
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lowmem import partition

TOKENS, HEADS, KEY_HEADS, LENGTH = 64, 4, 2, 6
MOST = 3e6  # parameters
SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    "moe_intermediate_size": 48,
    **{"num_key_value_heads": KEY_HEADS, "vocab_size": TOKENS, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0},
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **{"num_experts_per_tok": 2, "n_positions": 64, "layer_types": ["full_attention"] * 2},
}  # fmt: skip


def build(kind: str) -> nn.Module | None:
    """A tiny model of a family, or None where transformers cannot make one from these sizes."""
    try:
        config = transformers.AutoConfig.for_model(kind)
        for key, value in SMALL.items():
            if hasattr(config, key):
                with contextlib.suppress(Exception):
                    setattr(config, key, value)
        with torch.device("meta"):
            trial = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        if sum(p.numel() for p in trial.parameters()) > MOST:
            return None
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    except Exception:  # sizes that do not fit this family, packages that are not here
        return None


def heads_of(model: nn.Module) -> list[tuple[str, list[tuple[str, list[int]]]]]:
    """[(query | key | value, [(weight's name, rows that feed one head)])] of every head that reaches attention."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    real = F.scaled_dot_product_attention

    def watched(q, k, v, *arguments, **keywords):
        seen.append((q, k, v))
        return real(q, k, v, *arguments, **keywords)

    names = {id(p): name for name, p in model.named_parameters()}
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    hooks = [m.register_forward_pre_hook(lambda _, x: (x[0].detach(), *x[1:])) for m in layers]
    norms = [m for m in model.modules() if "norm" in type(m).__name__.lower()]  # over all heads, they mix rows
    hooks += [m.register_forward_hook(lambda _, x, y: x[0] if x[0].shape == y.shape else y) for m in norms]
    weights = [m.weight for m in layers]
    axes = {id(m.weight): int(type(m).__name__ == "Conv1D") for m in layers}
    F.scaled_dot_product_attention = torch.nn.functional.scaled_dot_product_attention = watched
    try:
        model(input_ids=torch.arange(1, LENGTH + 1)[None], use_cache=False)
    finally:
        F.scaled_dot_product_attention = torch.nn.functional.scaled_dot_product_attention = real
        for hook in hooks:
            hook.remove()
    found = []
    for call in seen:
        for part, x in zip(("query", "key", "value"), call):
            for head in range(x.shape[1] if x.ndim == 4 else 0):
                if not x.requires_grad:
                    continue
                chosen = x[:, head]
                grads = torch.autograd.grad(
                    (chosen * torch.randn_like(chosen)).sum(), weights, retain_graph=True, allow_unused=True
                )
                fed = []
                for w, g in zip(weights, grads):
                    if g is not None and g.any():
                        rows = g.abs().movedim(axes[id(w)], 0).flatten(1).amax(1).nonzero().flatten().tolist()
                        fed.append((names[id(w)], rows))
                found.append((part, fed))
    return found


def label(blocks) -> list[int]:
    """The block of each row along the axis that blocks cut; -1 - row where each coordinate is its own."""
    rows, number = [], 0
    for start, stop, size in blocks.segments:
        for _ in range(start, stop, size):
            rows += [number] * size
            number += 1
    return rows


def disagreements(model: nn.Module, **settings) -> tuple[int, list[str]]:
    """(heads looked at, what the partition cuts otherwise)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = partition(model, **settings)
    looked, wrong = 0, []
    for part, fed in heads_of(model):
        for name, rows in fed:
            labels = label(known[name])
            mine = {labels[row] for row in rows}
            whole = [row for row, of in enumerate(labels) if of in mine]
            looked += 1
            fits = whole == rows and (len(mine) == len(rows) if part == "value" else len(mine) == 1)
            if not fits:
                wrong.append(f"{name}: {part} rows {rows[:3]}..{rows[-1:]} are {len(mine)} blocks of {len(whole)} rows")
    return looked, wrong


def test_the_oracle_sees_heads_cut_wrongly():
    model = build("llama")
    looked, wrong = disagreements(model)
    assert looked >= 2 * 3 * KEY_HEADS and not wrong
    name = "model.layers.0.self_attn.q_proj.weight"
    for how in ("row", "tensor", 2 * HEADS, HEADS // 2):
        _, wrong = disagreements(model, overrides={name: how})
        assert wrong and all(line.startswith(name) for line in wrong)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_causal_architecture_that_runs_here_has_a_head_that_is_cut_otherwise():
    run, heads, wrong = [], 0, {}
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        torch.manual_seed(0)
        model = build(kind)
        if model is None:
            continue
        try:
            looked, lines = disagreements(model)
        except Exception:
            continue
        if looked:
            run.append(kind)
            heads += looked
            if lines:
                wrong[kind] = lines[:1]
    assert not wrong, wrong
    assert f"all {heads:,} heads of {len(run)} architectures" in " ".join((ROOT / "README.md").read_text().split())
