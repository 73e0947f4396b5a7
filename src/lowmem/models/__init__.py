"""Models, one readable file each; the file name is the key. Each exports build(**settings) -> nn.Module and SIZES."""

import importlib


def build(settings: dict, **shape):
    """The model of an experiment's `model:`: {name: its file, settings...}. shape: what the data say of it, as far as the
    model has such settings and the experiment does not say otherwise."""
    module = importlib.import_module(f"lowmem.models.{settings['name']}")
    known = {key: value for key, value in shape.items() if key in module.Config.__dataclass_fields__}
    return module.build(**{**known, **{key: value for key, value in settings.items() if key != "name"}})
