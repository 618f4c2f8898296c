"""Print versions, devices, and for each backend of each operation whether it can run here, or why not.

usage: python -m mixfast.doctor
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

import mixfast
from mixfast.errors import ConfigError
from mixfast.ops import _dispatch, _native
from mixfast.run.command import run

PACKAGES = ("numpy", "pillow", "tyro", "rich", "safetensors", "matplotlib", "torchvision", "triton")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run(arguments, report)


def report(arguments: Sequence[str] = ()) -> None:
    """Print the report. It is meant for bug reports: it holds no secrets and needs only torch."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").rstrip())
        return
    if arguments:
        raise ConfigError(
            f"unknown option {arguments[0]}; this command takes none but --help, --version and --traceback."
        )
    for title, rows in (
        ("versions", versions()),
        ("compiled modules", modules()),
        ("devices", devices()),
        ("environment", environment()),
        ("operations", operations()),
    ):
        print(title)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"  {name:<{width}}  {value}")


def versions() -> list[tuple[str, str]]:
    """(name, version) of mixfast, Python, torch and the packages that parts of mixfast use."""
    folder = Path(mixfast.__file__).parent
    runtime = torch.version.cuda or torch.version.hip
    rows = [
        ("mixfast", f"{mixfast.__version__} from {folder}"),
        ("python", f"{platform.python_version()} from {sys.executable}"),
        ("torch", f"{torch.__version__} ({f'CUDA runtime {runtime}' if runtime else 'CPU only'})"),
    ]
    return rows + [(name, _version(name)) for name in PACKAGES]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def modules() -> list[tuple[str, str]]:
    """(module, file and interface number, or the reason why it is not there)."""
    return [
        ("_mixfast_C", _describe(_native.cpu, _native.cpu_error)),
        ("_mixfast_cuda", _describe(_native.cuda, _native.cuda_error)),
    ]


def _describe(module: ModuleType | None, error: str) -> str:
    if module is None:
        return error
    codes = [code.split("-") for code in getattr(module, "archs", "").split(",") if code]
    built = " ".join(f"sm_{arch}" if kind == "real" else f"compute_{arch} (PTX)" for arch, kind in codes)
    return f"interface {module.ABI} from {module.__file__}" + (f" for {built}" if built else "")


def devices() -> list[tuple[str, str]]:
    """(device, name and size); the CPU first."""
    rows = [("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")]
    if not torch.backends.cuda.is_built():
        return [*rows, ("cuda", "this torch is built without CUDA")]
    if not torch.cuda.is_available():
        return [*rows, ("cuda", "torch finds no GPU, or no driver for it")]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        size = gpu.total_memory / 2**30
        rows.append((f"cuda:{index}", f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {size:.0f} GiB"))
    return rows


def environment() -> list[tuple[str, str]]:
    """The environment variables of mixfast; the last one is read when the package is built."""
    return [
        ("MIXFAST_BACKEND", os.environ.get("MIXFAST_BACKEND", "not set: auto")),
        ("MIXFAST_CPU", os.environ.get("MIXFAST_CPU", "not set: the best instructions of this processor")),
        ("MIXFAST_CUDA", os.environ.get("MIXFAST_CUDA", "not set: auto") + " (read when the package is built)"),
    ]


def operations() -> list[tuple[str, str]]:
    """("operation backend", why it cannot be used on this machine, or the tensors for which "auto" uses it)."""
    return [
        (f"{op} {name}", reason or "available" + "".join(f"; {part}" for part in _automatic(op, name, row)))
        for op, row in mixfast.backends().items()
        for name, reason in row.items()
    ]


def _automatic(operation: str, backend: str, reasons: dict[str, str | None]) -> list[str]:
    """The devices of this machine for which "auto" uses a backend, with the backends that are tried before it."""
    parts = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        usable = [name for name in _dispatch.automatic(operation, device) if reasons[name] is None]
        if backend in usable:
            preferred = " and ".join(usable[: usable.index(backend)])
            parts.append(f"auto for {device} tensors" + (f", after {preferred}" if preferred else ""))
    return parts


if __name__ == "__main__":
    sys.exit(main())
