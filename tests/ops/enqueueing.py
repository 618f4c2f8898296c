"""enqueue_ under test: random input, the definition in plain loops, and calls on the backend's device."""

from typing import Any

import torch
from torch import Tensor

import mixfast
from tests.backends import device_of

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# rows of each queue, rows of its keys, its pointer, D
CASES = {
    "one-row": ([1], [1], [0], 1),
    "wraps": ([7], [4], [5], 5),
    "whole-queue": ([9], [9], [4], 37),
    "up-to-the-end": ([8], [3], [5], 16),
    "different-queues": ([100, 4, 5, 65, 1], [70, 3, 0, 65, 1], [95, 3, 1, 7, 0], 37),
    "many-queues": ([3] * 35, [2] * 35, [q % 3 for q in range(35)], 9),  # of which a launch takes 32
    "wide": ([6], [4], [4], 700),
}


def draw(case: tuple, dtype: torch.dtype, queue_dtype: torch.dtype, rng: torch.Generator) -> dict[str, Any]:
    sizes, counts, pointers, dim = case
    return {
        "queues": [torch.randn(size, dim, generator=rng).to(queue_dtype) for size in sizes],
        "keys": [torch.randn(count, dim, generator=rng, dtype=torch.float64).to(dtype) for count in counts],
        "pointers": torch.tensor(pointers),
    }


def loops(
    queues: list[Tensor], keys: list[Tensor], pointers: Tensor, normalize: bool
) -> tuple[list[Tensor], list[int]]:
    """The queues in float64 and the pointers after a call."""
    after = [queue.double() for queue in queues]
    moved = []
    for queue, rows, pointer in zip(after, keys, pointers.tolist(), strict=True):
        for i, row in enumerate(rows.double()):
            length = sum(value * value for value in row.tolist()) ** 0.5
            queue[(pointer + i) % len(queue)] = row / max(length, 1e-12) if normalize else row
        moved.append((pointer + len(rows)) % len(queue))
    return after, moved


def enqueue(given: dict[str, Any], normalize: bool, backend: str, *, listed: bool) -> tuple[list[Tensor], list[int]]:
    """Calls the operation on copies, on the backend's device, with pointers in one tensor or `listed`."""
    device = device_of(backend)
    queues = [queue.to(device, copy=True) for queue in given["queues"]]
    pointers = given["pointers"].to(device, copy=True)
    places = [pointer.clone() for pointer in pointers] if listed else pointers
    keys = [rows.to(device) for rows in given["keys"]]
    mixfast.enqueue_(queues, keys, places, normalize=normalize, backend=backend)
    return [queue.cpu() for queue in queues], [int(pointer) for pointer in places]


def check(
    ours: tuple[list[Tensor], list[int]], given: dict[str, Any], normalize: bool, *, truncates: bool = False
) -> None:
    """Equal to the loops but for the rounding of the queue's dtype and of a normalised row's."""
    queues, pointers = loops(given["queues"], given["keys"], given["pointers"], normalize)
    assert ours[1] == pointers
    for queue, expected in zip(ours[0], queues, strict=True):
        computed = torch.promote_types(given["keys"][0].dtype, torch.float32)
        rounding = torch.finfo(queue.dtype).eps * (1 if truncates else 0.5)
        if normalize:
            rounding += 2 * torch.finfo(computed).eps
        elif torch.finfo(queue.dtype).eps <= torch.finfo(given["keys"][0].dtype).eps:
            rounding = 0.0  # a copy
        smallest = torch.finfo(queue.dtype).smallest_normal * torch.finfo(queue.dtype).eps
        torch.testing.assert_close(queue.double(), expected, rtol=rounding, atol=smallest)
