"""A model from its name alone, on the meta device: shapes without weights, for `lowmem blocks`."""

import importlib
from pathlib import Path

from lowmem.errors import Misuse, nearest
from lowmem.models import _hub


def build(name: str):
    """The model of a name: gpt2, llama:llama2-7b (file of lowmem/models, size), or a Hugging Face name or folder.

    Nothing is downloaded but a Hugging Face configuration that is not a local folder. Raises Misuse for unknown names.
    """
    import torch

    file, _, size = name.partition(":")
    own = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    with torch.device("meta"):
        if file in own:
            module = importlib.import_module(f"lowmem.models.{file}")
            if not hasattr(module, "build"):
                raise Misuse(f"{file} is not a model by itself but an adapter; see model.adapter of an experiment")
            if size and size not in getattr(module, "SIZES", {}):
                raise Misuse(f"{file} has no size {size!r}{nearest(size, getattr(module, 'SIZES', {}))}")
            return module.build(**({"size": size} if size else {}))
        if "/" not in name and not Path(name).is_dir():
            raise Misuse(f"unknown model {name!r}{nearest(name, own)}; a Hugging Face name has a slash")
        return _hub.build(name, _hub.config_of(name))
