"""Huge logits in the Triton backends, as triton_interpreted.py has the operations, and run beside it."""

import math

import pytest
import torch

from tests.ops import test_huge_logits as huge_tests

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy, as inf and NaN arise


@huge_tests.OPERATIONS
@pytest.mark.parametrize("size", [(1e2, 0.1), (1e2, 1e-3), (2e4, 0.1), (1.0, 1e-9), (1e6, 1e-12)], ids=str)
def test_sizes(operation: str, size: tuple[float, float], rng: torch.Generator) -> None:
    length, temperature = size
    right = length**2 / temperature < (2**17 if operation == "nt_xent" else 2**28)
    huge_tests.check_size(operation, "triton", size, torch.float32, rng, right=right)


@pytest.mark.parametrize("number", range(len(huge_tests.PLACES)))
def test_no_numbers(number: int, rng: torch.Generator) -> None:
    """NaN in every place, and infinity of one sign and the other in turn."""
    operation, where = huge_tests.PLACES[number]
    for bad in (math.nan, math.inf * (-1) ** number):
        huge_tests.check_no_number(operation, "triton", bad, where, rng)
