"""multi_queue_infonce, forward and backward: five terms over three queues, D = 128, against what else there is."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.infonce import Case, Inputs, attention, eager, inputs, lightly, ours, products, with_gradients

INDEX = (0, 1, 2, 0, 1)
CASES = [Case(INDEX, 64, 4096), Case(INDEX, 512, 4096), Case(INDEX, 512, 65536)]
SMOKE = Case(INDEX, 8, 64)


def draw(case: Case) -> Inputs:
    return inputs(case, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(measure: Any, smoke: bool, case: Case) -> None:
    case = SMOKE if smoke else case
    given = draw(case)
    compiled = torch.compile(eager, backend="eager" if smoke else "inductor")
    runs: dict[str, Callable[[], object]] = {
        "mixfast cpu": with_gradients(ours("cpu"), given),
        "floor: two matrix products": lambda: products(given),
        "flash attention with V = K": lambda: attention(given),
        "eager": with_gradients(eager, given),
        "torch.compile of eager": with_gradients(compiled, given),
    }
    if importlib.util.find_spec("lightly"):  # which pip install mixfast[bench] brings
        runs["lightly NTXentLoss"] = with_gradients(lightly(given), given)
    measure(f"multi_queue_infonce, {case}", runs)


@pytest.mark.parametrize("share", [False, True])
def test_peers_compute_the_same(share: bool) -> None:
    given = draw(Case(INDEX, 16, 100))
    expected = ours("reference")(given)
    gradients = torch.autograd.grad(expected, given.queries)
    loss, ours_too = attention(given, share=share)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(ours_too, gradients, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(eager(given), expected)
    if importlib.util.find_spec("lightly"):
        # With gradients its memory bank would take the keys of each term before the next one.
        fixed = given._replace(queries=[query.detach() for query in given.queries])
        torch.testing.assert_close(lightly(given)(fixed), expected)
