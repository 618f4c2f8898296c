"""multi_queue_infonce, forward and backward: five terms over three queues, D = 128, against what else there is."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.infonce import Case, Inputs, attention, by_mixfast, eager, inputs, lightly, products, with_gradients

INDEX = (0, 1, 2, 0, 1)
CASES = [Case(INDEX, 64, 4096), Case(INDEX, 512, 4096), Case(INDEX, 512, 65536)]
SMOKE = Case(INDEX, 8, 64)


def draw(case: Case) -> Inputs:
    return inputs(case, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(measure: Any, smoke: bool, case: Case) -> None:
    case = SMOKE if smoke else case
    data = draw(case)
    compiled = torch.compile(eager, backend="eager" if smoke else "inductor")
    runs: dict[str, Callable[[], object]] = {
        "mixfast cpu": with_gradients(by_mixfast("cpu"), data),
        "floor: two matrix products": lambda: products(data),
        "flash attention with V = K": lambda: attention(data),
        "eager": with_gradients(eager, data),
        "torch.compile of eager": with_gradients(compiled, data),
    }
    if importlib.util.find_spec("lightly"):  # which pip install mixfast[bench] brings
        runs["lightly NTXentLoss"] = with_gradients(lightly(data), data)
    measure(f"multi_queue_infonce, {case}", runs)


@pytest.mark.parametrize("share", [False, True])
def test_peers_compute_the_same(share: bool) -> None:
    data = draw(Case(INDEX, 16, 100))
    expected = by_mixfast("reference")(data)
    gradients = torch.autograd.grad(expected, data.queries)
    loss, attention_gradients = attention(data, share=share)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(attention_gradients, gradients, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(eager(data), expected)
    if importlib.util.find_spec("lightly"):
        # With gradients its memory bank would take the keys of each term before the next one.
        fixed = data._replace(queries=[query.detach() for query in data.queries])
        torch.testing.assert_close(lightly(data)(fixed), expected)
