"""What the package shows, for type checkers and editors; at run time a class is imported when it is asked for."""

from lowmem.optim._factory import find as find
from lowmem.optim._factory import make as make
from lowmem.optim.adafactor import Adafactor as Adafactor
from lowmem.optim.adalomo import AdaLomo as AdaLomo
from lowmem.optim.adam_mini import AdamMini as AdamMini
from lowmem.optim.adamw import AdamW as AdamW
from lowmem.optim.came import CAME as CAME
from lowmem.optim.core.conversion import convert as convert
from lowmem.optim.core.fused_backward import FusedBackward as FusedBackward
from lowmem.optim.lamb import Lamb as Lamb
from lowmem.optim.lion import Lion as Lion
from lowmem.optim.lomo import Lomo as Lomo
from lowmem.optim.sgd import SGD as SGD
from lowmem.optim.sm3 import SM3 as SM3

def names() -> list[str]: ...
