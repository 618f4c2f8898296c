"""What the Triton backends of all operations share. Triton itself is imported by the modules with kernels only."""

import functools
import importlib.util
import os

import torch

OLDEST = (8, 0)  # compute capability; bfloat16 and asynchronous copies begin here


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors: TRITON_INTERPRET=1, set before the first call."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    found = max(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    if found < OLDEST:
        return f"it needs a GPU of compute capability {OLDEST[0]}.{OLDEST[1]}; the best one here has {found}"
    return None


def why_not(device_type: str, *dtypes: torch.dtype) -> str | None:
    wanted = "cpu" if interpreted() else "cuda"
    if device_type != wanted:
        return f"it takes {wanted.upper()} tensors; these are on {device_type}"
    return "it has no float64; backend='reference' has" if torch.float64 in dtypes else None


@functools.cache
def architecture(device: torch.device) -> int:
    """90 for compute capability 9.0. The interpreter stands in for the oldest."""
    major, minor = OLDEST if device.type == "cpu" else torch.cuda.get_device_capability(device)
    return 10 * major + minor


def power_of_two(number: int, least: int = 1) -> int:
    """The smallest power of two that is neither below `number` nor below `least`."""
    return max(least, 1 << (number - 1).bit_length())
