"""What the package shows, for type checkers and editors."""

from lowmem.blocks import ParamBlocks as ParamBlocks
from lowmem.blocks import partition as partition

__version__: str
