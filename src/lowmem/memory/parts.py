"""The parts of a training step's memory as readers see them, each the sum of the accountant's components of these names."""

PARTS = {
    "weights": ("parameters",),
    "gradients": ("gradients",),
    "state": ("optimizer_state",),
    "activations": ("activations",),
    "other": ("communication", "temporaries"),
}
