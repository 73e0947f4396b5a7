"""The script that prepares SuperGLUE tasks."""

import importlib.util

from lowmem.pipeline import experiments

ROOT = experiments.find_root()


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"data/{name}/prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
