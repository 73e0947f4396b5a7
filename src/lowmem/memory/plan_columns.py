"""The columns of `lowmem plan MODEL`, and what each means; without PyTorch."""

EXPLAINED = {
    "optimizer": "of this package; adamw_fused, _foreach (torch), adamw8bit, paged_* (bitsandbytes), ao_* (torchao): others'",
    "peak": "most that PyTorch's allocator holds at one moment of a step with one sequence per GPU",
    "weights": "of the model on one GPU, with frozen and packed ones",
    "gradients": "at their most, which is not when the peak is",
    "state": "moments, and fp32 copies of the weights with --precision master",
    "activations": "what forward keeps for backward, and what a layer needs while it runs",
    "other": "gathered shards, and copies that an operation makes for the moment",
    "batch": "sequences per GPU, the most that fit",
    "GiB": "the peak at that batch",
    "free": "memory that it leaves; below 0: what one sequence lacks",
    "tokens/s": "all GPUs together at that batch: the range in which 80 % of steps measured by others lay",
    "1 B tokens": "hours for a billion tokens, at the middle of that range",
    "energy": "of that, with every GPU at its board power",
}
COLUMNS = tuple(EXPLAINED)


def explained() -> str:
    """What each column of the table means."""
    width = max(map(len, EXPLAINED)) + 2
    return "\n".join(f"{name:<{width}}{meaning}" for name, meaning in EXPLAINED.items())
