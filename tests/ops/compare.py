"""What the tests of both operations share: the rule by which results are judged, and seeded random input."""

import zlib

import torch
from torch import Tensor

# Allowed beyond the error of the same-precision reference, as a fraction of the largest true value: rounding of the
# output for 16-bit types, a few roundings of the sums for the others.
SLACK = {torch.float64: 1e-14, torch.float32: 3e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def assert_no_worse(ours: Tensor, theirs: Tensor, truth: Tensor, slack: float, name: str) -> None:
    """Our error may exceed the same-dtype reference's by `slack` of the largest true value, anywhere, no more."""
    assert ours.shape == truth.shape, f"{name}: shape {list(ours.shape)}, expected {list(truth.shape)}"
    assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype}, expected {theirs.dtype}"
    assert torch.isfinite(ours).all(), f"{name}: not finite"
    if truth.numel() == 0:
        return
    truth = truth.double()
    allowed = (theirs.double() - truth).abs() + slack * truth.abs().max()
    excess = ((ours.double() - truth).abs() - allowed).max().item()
    assert excess <= 0, f"{name}: worse than the reference by {excess:.2e}"


def generator(name: str) -> torch.Generator:
    """A generator seeded by a name, a test's node id, say: `hash()` would differ from process to process."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))
