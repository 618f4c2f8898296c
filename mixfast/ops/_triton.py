"""Functions that the Triton backends of all operations share. Only the modules with kernels import Triton itself."""

import functools
import importlib.util
import os
from typing import Any

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
    best = max(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    if best < OLDEST:
        return f"it needs a GPU of compute capability {OLDEST[0]}.{OLDEST[1]}; the best one here has {best}"
    return None


def why_not(device_type: str, *dtypes: torch.dtype) -> str | None:
    wanted = "cpu" if interpreted() else "cuda"
    if device_type != wanted:
        return f"it takes {wanted.upper()} tensors; these are on {device_type}"
    return "it has no float64; backend='reference' has" if torch.float64 in dtypes else None


@functools.cache
def architecture(device: torch.device) -> int:
    """The compute capability of a device as a number, 90 for 9.0; the interpreter has the oldest supported one."""
    major, minor = OLDEST if device.type == "cpu" else torch.cuda.get_device_capability(device)
    return 10 * major + minor


def power_of_two(number: int, least: int = 1) -> int:
    """The smallest power of two that is neither below `number` nor below `least`."""
    return max(least, 1 << (number - 1).bit_length())


def factors(dtype: torch.dtype, queue_dtype: torch.dtype) -> str:
    """How matrix products are computed, for operands of these two dtypes.

    "fp16", "bf16": both operands have this dtype already.
    "cast": float32 is rounded to float16, where torch's settings allow TF32. float16 has as many fraction bits as TF32,
        and the range is enough for unit rows, whose entries are at most one.
    "bf16x3": all other cases; each operand is a sum of two bfloat16 numbers, in three products.
    "ieee": in the interpreter, which cannot multiply bfloat16, instead of "bf16" and "bf16x3".
    """
    if dtype == queue_dtype == torch.float16:
        return "fp16"
    if dtype == queue_dtype == torch.bfloat16 and not interpreted():
        return "bf16"
    if torch.float32 in (dtype, queue_dtype) and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "cast"
    return "ieee" if interpreted() else "bf16x3"


def row_constants(dim: int) -> dict[str, Any]:
    """Constants of the kernels that read rows once: tiles of 1024 numbers."""
    block_d = power_of_two(dim, least=16)
    return {"D": dim, "BLOCK_N": max(1024 // block_d, 1), "BLOCK_D": block_d}
