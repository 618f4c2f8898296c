"""Host time of an eager call, forward and backward, on shapes whose kernels take almost no time.

The floor of a table is an autograd.Function of the same tensors that only allocates: the cost of any differentiable
call in torch. The first row is one of torch's own operators.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import mixfast

INDEX, DIM = [0, 1, 2, 0, 1], 16  # five terms, three queues


def function(results: list[tuple[int, ...]], gradients: Sequence[tuple[int, ...] | None]) -> Callable[..., Any]:
    """Differentiable in its arguments; allocates results and gradients of these shapes, and does no more."""

    class Allocate(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple([torch.empty(shape) for shape in results])

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return tuple([None if shape is None else torch.empty(shape) for shape in gradients])

    return Allocate.apply


def forward_and_backward(
    call: Callable[[], Any], inputs: Sequence[Tensor], upstream: Sequence[Tensor]
) -> Callable[[], object]:
    """Forward and backward, with ready gradients of the results, whose creation is not measured."""

    def run() -> object:
        results = call()
        return torch.autograd.grad([results] if isinstance(results, Tensor) else results, inputs, upstream)

    return run


def test_pool_boxes(measure: Any) -> None:
    features, boxes = torch.randn(2, 4, 2, 2, requires_grad=True), torch.tensor([[0, 0, 4, 4], [2, 2, 8, 8]])
    upstream, floor = [torch.ones(2, 4)] * 2, function([(2, 4)] * 2, [(2, 4, 2, 2)])
    runs = {
        "torch.exp": forward_and_backward(features.exp, [features], [features.detach()]),
        "floor: an autograd.Function": forward_and_backward(lambda: floor(features), [features], upstream),
        "mixfast cpu": forward_and_backward(
            lambda: mixfast.masked_upsample_pool(features, boxes, (8, 8), backend="cpu"), [features], upstream
        ),
    }
    measure("host overhead, masked_upsample_pool of two boxes", runs)


def infonce(queries: Any, positives: Any) -> Callable[[], Any]:
    queues = [torch.ones(8, DIM) for _ in range(3)]
    return lambda: mixfast.multi_queue_infonce(queries, positives, queues, INDEX, backend="cpu")


def test_infonce_single_tensor(measure: Any) -> None:
    queries, positives = (torch.randn(5, 3, DIM, requires_grad=True) for _ in range(2))
    inputs, upstream, floor = [queries, positives], [torch.ones(5)], function([(5,)], [(5, 3, DIM)] * 2)
    runs = {
        "floor: an autograd.Function": forward_and_backward(lambda: floor(*inputs), inputs, upstream),
        "mixfast cpu": forward_and_backward(infonce(*inputs), inputs, upstream),
    }
    measure("host overhead, multi_queue_infonce of a tensor of five terms", runs)


@pytest.mark.parametrize("positives_too", [True, False])
def test_infonce_lists(measure: Any, positives_too: bool) -> None:
    """With gradients to both, and as methods with a key encoder call it, whose positives need none."""
    queries, positives = ([torch.randn(3, DIM, requires_grad=need) for _ in INDEX] for need in (True, positives_too))
    inputs = [*queries, *positives][: 10 if positives_too else 5]
    shapes = [(3, DIM)] * 5 + [(3, DIM) if positives_too else None] * 5
    upstream, floor = [torch.ones(5)], function([(5,)], shapes)
    runs = {
        "floor: an autograd.Function": forward_and_backward(lambda: floor(*queries, *positives), inputs, upstream),
        "mixfast cpu": forward_and_backward(infonce(queries, positives), inputs, upstream),
    }
    gradients = "" if positives_too else ", gradients to the queries alone"
    measure(f"host overhead, multi_queue_infonce of lists of five terms{gradients}", runs)
