"""Chooses the backend of a call: a named backend runs or raises, "auto" takes the first of ORDER that can run the call.

A backend of an operation is a module in that operation's folder, and exists if its file does. It is imported when it is
first considered, so that a machine that never uses Triton does not import it.

The module has two functions: `unavailable()` returns the reason why this machine cannot run the backend, and
`why_not(*facts)` the reason why the backend cannot run this call. Both return None if there is no such reason.
"""

import functools
import importlib
import importlib.util
import os
import pkgutil
import warnings
from pathlib import Path
from types import ModuleType

import torch

FILES = {"cuda": "gpu_cuda", "triton": "gpu_triton", "cpu": "cpu_native", "reference": "reference"}
# The backends that "auto" tries, by the type of the tensors' device; on any other device the reference. The order for
# "cpu" is measured (docs/benchmarks.md). That for "cuda" is not: CUDA C++ comes first because it launches no more
# kernels and reads strided tensors without a copy. Its results are checked in an emulator, those of Triton in an
# interpreter.
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}


@functools.cache
def packages() -> dict[str, str]:
    """The package of each operation, by the operation's name, which is the constant NAME of the package."""
    folder = Path(__file__).parent
    names = [f"mixfast.ops.{found.name}" for found in pkgutil.iter_modules([str(folder)]) if found.ispkg]
    return dict(sorted((importlib.import_module(name).NAME, name) for name in names))


@functools.cache
def load(operation: str, backend: str) -> ModuleType | None:
    """The module that implements a backend of an operation, or None if there is none."""
    name = f"{packages()[operation]}.{FILES[backend]}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


@functools.cache
def module(operation: str, backend: str) -> ModuleType:
    """The module of a backend that exists."""
    backend_module = load(operation, backend)
    assert backend_module is not None, f"{operation} has no backend {backend}"
    return backend_module


def names(operation: str) -> list[str]:
    """The backends that exist for an operation."""
    return [name for name in FILES if load(operation, name)]


def automatic(operation: str, device_type: str) -> list[str]:
    """The backends that "auto" tries for tensors on such a device, in this order."""
    return [name for name in ORDER.get(device_type, ("reference",)) if load(operation, name)]


def backends() -> dict[str, dict[str, str | None]]:
    """For each operation and backend: None if it can be used on this machine, else the reason why not."""
    return {op: {name: module(op, name).unavailable() for name in names(op)} for op in packages()}


def choose(operation: str, wanted: str, *facts: object) -> str:
    """The name of the backend that runs this call. Under torch.compile it is chosen once, while tracing.

    Args:
        operation: name of the operation.
        wanted: name of a backend, or "auto", which the environment variable MIXFAST_BACKEND replaces if it is set.
        facts: arguments of `why_not`: the type of the device, then other constants such as dtypes, but nothing that
            depends on a tensor's values.
    """
    if not isinstance(wanted, str):
        raise TypeError(f"{operation}: backend must be auto, {', '.join(names(operation))}; got {wanted!r}")
    if wanted == "auto":
        wanted = os.environ.get("MIXFAST_BACKEND", "auto")
    return _choose(operation, wanted, facts)


def constant_dim(dim: int) -> int:
    """D as a fact for `choose`; under torch.compile, where D may be a symbol, a limit that backends treat like D."""
    if not torch.compiler.is_compiling():
        return dim
    return next((limit for limit in (128, 256) if dim <= limit), 257)


# The effect of torch.compiler.assume_constant_result(choose), which would import torch._dynamo and take seconds.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _choose(operation: str, wanted: str, facts: tuple[object, ...]) -> str:
    existing = names(operation)
    if wanted != "auto" and wanted not in existing:
        from_environment = os.environ.get("MIXFAST_BACKEND") == wanted
        source = " (MIXFAST_BACKEND, which is for all operations)" if from_environment else ""
        raise ValueError(f"{operation}: backend must be auto, {', '.join(existing)}; got {wanted!r}{source}")
    refused: dict[str, str] = {}
    for name in automatic(operation, str(facts[0])) if wanted == "auto" else [wanted]:
        backend = module(operation, name)
        reason = backend.unavailable() or backend.why_not(*facts)
        if reason is None:
            if wanted == "auto" and name == "reference" and refused:
                _warn_once(operation, "; ".join(f"{other}: {why}" for other, why in refused.items()))
            return name
        refused[name] = reason
    reasons = "\n".join(f"  {name}: {reason}" for name, reason in refused.items())
    raise RuntimeError(f"{operation}: no backend can run this call\n{reasons}")


@functools.cache
def _warn_once(operation: str, reasons: str) -> None:
    warnings.warn(f"{operation}: using the slow reference implementation ({reasons})", stacklevel=5)
