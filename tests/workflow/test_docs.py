"""What the API pages are made from: every public name exists and says what it is."""

import importlib.util
import inspect

import pytest
from synthetic import ROOT

spec = importlib.util.spec_from_file_location("build_docs", ROOT / "docs/build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def public(module) -> dict:
    """What a module offers: its __all__, else the functions and classes that it defines itself."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    own = {name: value for name, value in vars(module).items() if within(value, module)}
    return {name: value for name, value in own.items() if callable(value) and not name.startswith("_")}


def within(value, module) -> bool:
    """Whether a module, or one inside it where it is a package, defines a value."""
    return f"{getattr(value, '__module__', None)}.".startswith(f"{module.__name__}.")


@pytest.mark.parametrize("name", build.MODULES)
def test_every_public_name_has_a_docstring_and_every_function_its_types(name):
    module = build.load(name)
    found = public(module)
    assert inspect.getdoc(module) and found
    for label, value in found.items():
        assert len(inspect.getdoc(value) or "") > 15, label
        if inspect.isfunction(value):
            assert value.__annotations__, f"{name}.{label} has no type hints"


def test_lazily_found_names_are_listed():
    assert {"AdamMini", "Lomo", "AdaLomo", "SM3"} <= vars(build.load("lowmem.optim")).keys()
