"""How optimizers are written in figures, tables and reports."""

from lowmem import provenance

NAMES = {
    "adamw": "AdamW",
    "adamw_twin": "AdamW, nudged",
    "adam_mini": "Adam-mini",
    "lomo": "LOMO",
    "sgd": "SGD",
    "adalomo": "AdaLomo",
    "adafactor": "Adafactor",
    "came": "CAME",
    "sm3": "SM3",
    "lion": "Lion",
    "lamb": "LAMB",
    "adafactor_zhai": "Adafactor (Zhai)",
    "adafactor_flags": "Adafactor, flags",
    "zhai_flags": "Zhai, flags",
    "adam_mini_backward": "Adam-mini in backward",
    "adam_mini_neuron": "Adam-mini, by neuron",
    "default_partition": "default partition",
    "value_whole": "value as one block",
    "embedding_whole": "embedding as one block",
    "embedding_adam": "embedding by Adam",
    "max": "maximum",
    "min": "minimum",
    "l1": "1-norm",
    "l2": "2-norm",
    "momentum": "SGD with momentum",
    "variance": "second moment alone",
    "adam": "Adam",
}


def is_optimizer(name: str) -> bool:
    """Whether the package has an optimizer of that name."""
    return name.isidentifier() and not name.startswith("_") and (provenance.PACKAGE / f"optim/{name}.py").is_file()


def name(optimizer: str) -> str:
    """How an optimizer is written in a figure or table; "Sign descent" for sign_descent, which has no entry above."""
    plain = optimizer.replace("_", " ").capitalize() if is_optimizer(optimizer) else optimizer
    return NAMES.get(optimizer, plain)
