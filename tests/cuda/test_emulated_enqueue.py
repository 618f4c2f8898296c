"""The CUDA kernel of enqueue_, run on the host under sanitizers, against plain loops."""

import pytest
import torch

from mixfast.ops import _native
from tests.cuda.emulated import FORWARD, ORDERS, Emulated, emulated
from tests.ops.enqueueing import CASES, DTYPES, check, draw

kernels = emulated("tests/cuda/enqueue_driver.cpp", "csrc/enqueue/cuda.cu")


def run(kernels: Emulated, given: dict, normalize: bool, order: int = FORWARD) -> tuple[list[torch.Tensor], list[int]]:
    """The queues and pointers after a launch, in which the blocks run in the given order."""
    queues = [queue.clone() for queue in given["queues"]]
    pointers = [pointer.clone() for pointer in given["pointers"]]
    rings = zip(queues, given["keys"], pointers, strict=True)
    operands = [each for queue, keys, pointer in rings for each in (len(queue), len(keys), queue, keys, pointer)]
    types = _native.DTYPES[queues[0].dtype], _native.DTYPES[given["keys"][0].dtype]
    kernels("enqueue", len(queues), *types, normalize, queues[0].shape[1], *operands, order=order)
    return queues, [int(pointer) for pointer in pointers]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_loops(kernels: Emulated, name: str, normalize: bool, rng: torch.Generator) -> None:
    given = draw(CASES[name], torch.float32, torch.float32, rng)
    for order in ORDERS:
        check(run(kernels, given, normalize, order), given, normalize)


@pytest.mark.parametrize("queue_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(kernels: Emulated, dtype: torch.dtype, queue_dtype: torch.dtype, rng: torch.Generator) -> None:
    given = draw(([20, 4], [9, 3], [15, 3], 37), dtype, queue_dtype, rng)
    for normalize in (True, False):
        check(run(kernels, given, normalize), given, normalize)
