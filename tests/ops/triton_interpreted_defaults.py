"""torch's defaults and the Triton backends, as triton_interpreted.py has the operations, and run beside it."""

from collections.abc import Callable

import pytest
import torch

from tests.ops import test_torch_defaults as defaults_tests


@pytest.mark.parametrize("run", [run for run, _ in defaults_tests.RUNS])
def test_operations(run: Callable[..., defaults_tests.Made], rng: torch.Generator) -> None:
    """Under both at once: the interpreter is slow."""
    defaults_tests.check(run(rng, "triton"), "bfloat16", "meta")
