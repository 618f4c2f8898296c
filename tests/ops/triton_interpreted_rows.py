"""nt_xent in Triton, as triton_interpreted.py has the other operations, and run beside it."""

import functools

import pytest
import torch

from mixfast.ops.ntxent import gpu_triton
from tests.ops import ntxent
from tests.ops import test_nt_xent as nt_xent_tests

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CASES = {**ntxent.CASES, "large": (40, 200, 0.2, False), "three-chunks": (130, 16, 0.1, True)}
del CASES["several-panels"]  # the last one has as many tiles, and chunks of 128 rows


# Every dtype where views meet in a tile, every shape with one of them.
TURNS = [(name, DTYPES[number % 3]) for number, name in enumerate(CASES)]
TURNS += [("views-meet-in-a-panel", dtype) for dtype in DTYPES if ("views-meet-in-a-panel", dtype) not in TURNS]


@pytest.mark.parametrize(("name", "dtype"), TURNS, ids=str)
def test_nt_xent(name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    nt_xent_tests.check("triton", CASES[name], dtype, rng)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nt_xent_reductions(reduction: str, rng: torch.Generator) -> None:
    inputs = ntxent.draw(CASES["odd"], torch.float32, rng)
    weights = torch.tensor(-0.5)
    ours, theirs = (
        ntxent.gradients(inputs, weights, functools.partial(ntxent.nt_xent, reduction=reduction, backend=backend))
        for backend in ("triton", "cpu")
    )
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6)


def test_nt_xent_in_float16_where_tf32_is_allowed(rng: torch.Generator) -> None:
    inputs = ntxent.draw((40, 24, 0.1, False), torch.float32, rng)
    exact = ntxent.nt_xent(**inputs, backend="triton")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        loss = ntxent.nt_xent(**inputs, backend="triton")
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert not torch.equal(loss, exact)
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=1e-4)


def test_small_upstream_gradients_survive_float16(rng: torch.Generator) -> None:
    """1e-6 / 2N times a probability would be zero in float16; the gradient is what it is times 1e-6 otherwise."""
    inputs = ntxent.draw((70, 24, 0.2, False), torch.float32, rng)
    whole, small = (
        ntxent.gradients(
            {**inputs, "first": inputs["first"].half(), "second": inputs["second"].half()},
            torch.tensor(scale),
            functools.partial(ntxent.nt_xent, backend="triton"),
        )["d_temperature"]
        for scale in (1.0, 1e-6)
    )
    torch.testing.assert_close(small * 1e6, whole, rtol=1e-4, atol=0)


def test_nt_xent_alone_hidden_and_refused(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    nt_xent_tests.test_an_image_alone_has_no_loss("triton", rng)
    nt_xent_tests.test_hand_numbers("triton")
    nt_xent_tests.test_what_cannot_be_excluded_stays("triton", rng)
    nt_xent_tests.test_only_what_requires_a_gradient_gets_one("triton", rng)
    nt_xent_tests.test_non_contiguous_input("triton", rng)
    reasons = [gpu_triton.why_not("cpu", *facts) for facts in ((torch.float64, 4), (torch.float16, 257))]
    monkeypatch.setattr(gpu_triton, "factors", lambda *dtypes: "bf16x3")  # what they are on a GPU
    reasons.append(gpu_triton.why_not("cpu", torch.float32, 129))
    for reason, part in zip(reasons, ("no float64", "D up to 256; got 257", "D up to 128 for float32"), strict=True):
        assert reason is not None and part in reason


def test_chunks() -> None:
    assert [gpu_triton.chunk_size(total) for total in (2, 1024, 8192, 65536)] == [128, 128, 2752, 65536]
