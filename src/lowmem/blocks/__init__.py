"""From a model to its Hessian blocks: which weights share a second moment."""

from lowmem.blocks.partitioning import (  # noqa: F401  public names
    Misfit,
    ParamBlocks,
    Partition,
    along,
    coordinates,
    one_block,
    partition,
)
