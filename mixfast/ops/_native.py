"""Loads the compiled modules, or keeps the reason why one is absent.

They are top-level modules, not members of the package: run from a checkout's root, `./mixfast` shadows the
installed package, and a module inside the package would not be found there.
"""

import importlib
from types import ModuleType

import torch  # noqa: F401  before the modules: its OpenMP runtime must be the one in the process

ABI = 2  # raised whenever the signature of a native function changes


def _load(name: str) -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return None, f"{name} is not installed ({error}); run `pip install .` in the checkout"
    found = getattr(module, "ABI", None)
    if found != ABI:
        return None, f"{module.__file__} has interface {found}, this source needs {ABI}; run `pip install .` again"
    return module, ""


cpu, cpu_error = _load("_mixfast_C")
cuda, cuda_error = _load("_mixfast_cuda")
