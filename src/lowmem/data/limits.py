"""Sizes that no model has: what a file or a setting asks for beyond them is refused before memory is taken for it."""

MOST = {  # the largest Llamas have 126 layers, 128 heads, a width of 16,384 and 131,072 places
    "n_layer": 1_000,
    "n_head": 4_096,
    "n_kv_head": 4_096,
    "head_dim": 4_096,
    "n_embd": 1 << 18,
    "n_hidden": 1 << 20,
    "vocab_size": 1 << 24,
    "block_size": 1 << 22,
}
