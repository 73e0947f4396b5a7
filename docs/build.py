"""API pages of what a program imports, from the docstrings: `make docs` writes docs/api/index.html (needs pdoc)."""

import importlib
from pathlib import Path

# Modules for users; those of the pipeline are read in the source.
MODULES = [
    "lowmem",
    "lowmem.blocks",
    "lowmem.optim",
    "lowmem.optim.core.zero1",
    "lowmem.compat",
    "lowmem.integrations.huggingface",
    "lowmem.integrations.deepspeed",
    "lowmem.training.sharded_checkpoint",
]


def load(name: str):
    """A module whose lazily found names are there for whoever lists them."""
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        setattr(module, public, getattr(module, public))
    return module


def main() -> None:
    import pdoc

    for name in MODULES:
        load(name)
    place = Path(__file__).parent / "api"
    pdoc.render.configure(docformat="markdown", footer_text="lowmem: Adam-mini and LOMO, reproduced")
    pdoc.pdoc(*MODULES, output_directory=place)
    print(place / "index.html")


if __name__ == "__main__":
    main()
