"""Upper bounds on model sizes: files and settings beyond them are refused before any memory is allocated."""

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
