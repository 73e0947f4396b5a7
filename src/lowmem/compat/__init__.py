"""The official packages' classes with their own arguments, on this package's optimizers: a script changes its import alone.

from lowmem.compat import Adam_mini        # was: from adam_mini import Adam_mini
from lowmem.compat import AdaLomo, Lomo    # was: from lomo_optim import AdaLomo, Lomo
"""

from lowmem.compat.adam_mini import Adam_mini
from lowmem.compat.lomo import AdaLomo, Lomo

__all__ = ["AdaLomo", "Adam_mini", "Lomo"]
