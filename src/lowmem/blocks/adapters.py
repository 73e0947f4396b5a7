"""Roles of an adapter's tensors (peft, lycoris) on a layer: by attribute name, since nearly all are bare parameters.

A tensor whose rows are the layer's own rows is cut as the layer is, by heads on queries and keys; one that makes a few
numbers from the layer's input is cut by those numbers. Shapes are those of peft 0.21; `out` and `in` are the layer's.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from lowmem.blocks.layers import WRAPPERS, Claim, Role, is_lazy, is_linear, out_features, weight_of

ROWS = {  # (out, r)
    "lora_B", "hira_B", "delora_B", "deft_P", "hada_w1_a", "hada_w2_a", "glora_A.Xd", "glora_B.Xd",
}  # fmt: skip
# (r, in): one block for each of the r numbers. Of a Kronecker product (LoKr) each row of either factor; of an orthogonal
# matrix in Cayley's form (OFT) the numbers of one block.
NEURONS = {
    "lora_A", "hira_A", "delora_A", "deft_R", "hada_w1_b", "hada_w2_b", "hada_t1", "hada_t2", "glora_A.Xu", "glora_B.Xu",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "oft_R", "randlora_lambda",
    "randlora_gamma", "vblora_vector_bank",
}  # fmt: skip
OTHERS = {
    "hra_u": Role("neuron", axis=1),  # (in, r): one reflection per column
    "miss_block": Role("neuron", axis=1),  # (r, out), multiplied from the right
    "c3a_kernel": Role("neuron", merge=2),  # (out / b, in / b, b): one circulant block each
    "boft_R": Role("neuron", merge=2),  # (factors, blocks, b, b): one rotation each
    "vblora_logits_A": Role("neuron", merge=2),  # (r, parts, vectors): one choice among vectors each
    "vblora_logits_B": Role("neuron", merge=2),
    "gralora_A": Role("neuron", axis=1, stack=1),  # (parts, in / parts, r), multiplied from the right
    "gralora_B": Role("neuron", axis=1, stack=1),  # (parts, r, out / parts)
    "lora_embedding_A": Role("embedding", axis=1),  # (r, tokens)
    "lora_embedding_B": Role("neuron"),  # (width, r)
    "trainable_tokens_delta": Role("embedding"),  # (tokens, width)
}


def claim_adapters(layer: nn.Module, base: nn.Module, role: Role, claim: Claim) -> None:
    """Roles of all adapters on `layer`, whose own projection `base` plays `role`; what is not known here stays open."""
    rows = out_features(base) if is_linear(base) else None
    for name, part in layer._modules.items():
        if name in WRAPPERS or part is None:
            continue
        for inner in part.modules():
            if is_linear(inner):
                alike = out_features(inner) == rows and not name.endswith(("_A", "_down"))
                claim(weight_of(inner), dataclasses.replace(role, axis=0) if alike else Role("neuron"))
                continue
            for key, p in inner.named_parameters(recurse=False):
                if p.ndim < 2 or is_lazy(p) or p.numel() == max(p.shape):
                    continue
                kind = name if key in ("weight", *getattr(part, "_parameters", ())) else f"{name}.{key}"
                if kind in ROWS and len(p) == rows:
                    claim(p, dataclasses.replace(role, axis=0))
                elif kind == "miss_block" and p.shape[1] == rows:
                    claim(p, dataclasses.replace(role, axis=1))
                elif kind in ROWS | NEURONS:
                    claim(p, Role("neuron"))
                elif kind in OTHERS:
                    claim(p, OTHERS[kind])
