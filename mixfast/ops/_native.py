"""Loads the compiled modules, or stores the reason why one is missing.

They are top-level modules, not members of the package: when Python runs in the root of a checkout, `./mixfast` shadows
the installed package, and a compiled module inside that package would not be found.
"""

import importlib
from types import ModuleType

import torch  # before the compiled modules, so that they use torch's OpenMP runtime
from torch import Tensor

ABI = 10  # raised whenever the signature of a native function changes, or what its memory holds
# Codes of dtypes and reductions, equal to those in C++ (csrc/common/matrix.h and the headers of csrc).
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3, torch.bool: 4, torch.uint8: 4}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def _load(name: str) -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return None, f"{name} is not installed ({error}); run `pip install .` in the checkout"
    interface = getattr(module, "ABI", None)
    if interface != ABI:
        return None, f"{module.__file__} has interface {interface}, this source needs {ABI}; run `pip install .` again"
    return module, ""


cpu, cpu_error = _load("_mixfast_C")
cuda, cuda_error = _load("_mixfast_cuda")


def cpu_unavailable() -> str | None:
    """Why the C++ backends cannot be used on this machine; None if they can."""
    return None if cpu else cpu_error


def cuda_unavailable() -> str | None:
    """Why the CUDA C++ backends cannot be used on this machine; None if they can."""
    if cuda is None:
        return cuda_error
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if any(_runs_on(code, capability) for code in cuda.archs.split(",") for capability in capabilities):
        return None
    here = " ".join(sorted({f"{major}{minor}" for major, minor in capabilities}))
    return f"it is built for {cuda.archs}; the GPUs here are {here} (MIXFAST_CUDA_ARCHS of the build, 80 at least)"


def _runs_on(code: str, capability: tuple[int, int]) -> bool:
    """Machine code ("80-real") runs on later GPUs of its generation, PTX ("80-virtual") on all later GPUs."""
    number, _, kind = code.partition("-")
    major, minor = divmod(int(number), 10)
    return capability >= (major, minor) and (kind == "virtual" or capability[0] == major)


def cpu_place(available: list[int], instruction_set: int) -> tuple[int, int]:
    """Launch arguments of a CPU call: (threads, code of the instruction set); -1 stands for the fastest available."""
    return torch.get_num_threads(), available[-1] if instruction_set < 0 else instruction_set


def place(tensor: Tensor) -> tuple[int, int]:
    """Launch arguments of a GPU call: (device number, handle of the device's current stream)."""
    return tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream
