"""lowmem: training large models with little memory, after Adam-mini (arXiv 2406.16793) and LOMO (arXiv 2306.09782).

Optimizers: `lowmem.optim` (`lowmem.optim.AdamMini`, `lowmem.optim.Lomo` and others). Blocks: `lowmem.blocks`. State over
data-parallel ranks: `lowmem.optim.core.zero1`. The official packages' calls: `lowmem.compat`. Inside other trainers:
`lowmem.integrations.huggingface`, `lowmem.integrations.deepspeed`. Sharded checkpoints:
`lowmem.training.sharded_checkpoint`.

Importing this package imports nothing else: the pipeline parses its configuration without PyTorch.
"""

__version__ = "1.0.0"
__all__ = ["ParamBlocks", "partition"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    if name in __all__:
        from lowmem import blocks

        return getattr(blocks, name)
    raise AttributeError(f"module 'lowmem' has no attribute {name!r}")
