"""A model's Config from the settings of an experiment: a named size, then single fields on top."""

from lowmem.errors import Misuse, nearest, refuse_unknown


def config_of(name: str, kind: type, settings: dict, sizes: dict[str, dict] | None = None, size: str | None = None):
    """kind(**fields), kind a dataclass. Misuse, naming the model, for an unknown size and an unknown or missing field."""
    if size is not None and size not in (sizes or {}):
        raise Misuse(f"{name} model: unknown size {size!r}{nearest(size, sizes or {})}")
    refuse_unknown(settings, kind.__dataclass_fields__, f"{name} model")
    try:
        return kind(**{**(sizes or {}).get(size, {}), **settings})
    except TypeError as error:  # a field without a default
        raise Misuse(f"{name} model: {error}") from error
