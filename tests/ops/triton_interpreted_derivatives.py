"""Derivatives in Triton, as triton_interpreted.py has the operations, and run beside it."""

import pytest

from tests.ops import test_derivatives as tests

pytestmark = tests.quiet


@pytest.mark.parametrize("name", ["infonce", "infonce-rows", "infonce-stacked", "nt_xent", "boxes", "norm"])
def test_derivatives(name: str) -> None:
    tests.check_forward_mode(name, "triton", singly=False)  # which inputs have tangents is no matter of the kernels
    tests.check_gradients(name, "triton")
    for kind in ("jvp of grad", "grad of jvp"):
        tests.check_nested(name, "triton", kind)
