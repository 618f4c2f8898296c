"""nt_xent as a citizen of torch: compile, opcheck, autocast, gradcheck, vmap, second derivatives; and bad input."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mixfast
from mixfast.ops.ntxent import _operators
from tests.backends import each_backend
from tests.ops.ntxent import nt_xent

pytestmark = pytest.mark.slow

ones = torch.ones


def unit(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=rng, dtype=dtype), dim=-1)


@each_backend("nt_xent", but=("triton",))
def test_gradcheck_of_rows(backend: str, rng: torch.Generator) -> None:
    """test_derivatives.py has the other reductions."""
    views = [unit(rng, 4, 3, dtype=torch.float64).requires_grad_() for _ in range(2)]
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    excluded = torch.tensor([1, -1, 7, 0, 3, 4, -1, 2])

    def losses(first: Tensor, second: Tensor, tau: Tensor) -> Tensor:
        return nt_xent(first, second, temperature=tau, excluded=excluded, reduction="none", backend=backend)

    assert torch.autograd.gradcheck(losses, (*views, temperature))


@each_backend("nt_xent", but=("reference",))
@pytest.mark.parametrize("by", ["first", "second", "temperature"])
def test_second_derivative_raises(backend: str, by: str, rng: torch.Generator) -> None:
    tensors = {name: unit(rng, 4, 8) for name in ("first", "second")} | {"temperature": torch.tensor(0.5)}
    variable = tensors[by].requires_grad_()
    loss = nt_xent(tensors["first"], tensors["second"], temperature=tensors["temperature"], backend=backend)
    (grad,) = torch.autograd.grad(loss, variable, create_graph=True)
    with pytest.raises(
        NotImplementedError, match=r"nt_xent: second derivatives are not implemented.*backend='reference'"
    ):
        torch.autograd.grad((grad + variable).sum(), variable)  # the sum: a lost term would leave a plausible number


def test_reference_has_second_derivatives(rng: torch.Generator) -> None:
    views = [unit(rng, 3, 4, dtype=torch.float64).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradgradcheck(lambda *views: nt_xent(*views, backend="reference"), views)


@each_backend("nt_xent", but=("triton",))
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_whole_graph(backend: str, dynamic: bool, rng: torch.Generator) -> None:
    def losses(first: Tensor, second: Tensor, temperature: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
        scalar = nt_xent(first, second, temperature=temperature, backend=backend)
        rows = nt_xent(first * 2, second, temperature=0.3, excluded=excluded, reduction="none", backend=backend)
        return scalar * 2, rows[1:].sum() + nt_xent(first, first, backend=backend)

    compiled = torch.compile(losses, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (6, 4) if dynamic else (6,):  # a static graph is made anew for every size
        leaves = (*(unit(rng, n, 8).requires_grad_() for _ in range(2)), torch.tensor(0.2, requires_grad=True))
        excluded = torch.arange(2 * n).flip(0)
        ours = torch.autograd.grad(sum(compiled(*leaves, excluded)), leaves)
        theirs = torch.autograd.grad(sum(losses(*leaves, excluded)), leaves)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


@each_backend("nt_xent", but=("reference", "triton"))
@pytest.mark.parametrize("given", [False, True])
def test_opcheck(backend: str, given: bool, rng: torch.Generator) -> None:
    """With and without the tensors that may be None."""
    views = unit(rng, 2, 4, 8)
    options = (torch.tensor([1, 2, -1, -1, -1, 0, 0, 0]), torch.tensor(0.2), 0.0) if given else (None, None, 0.2)
    for reduction in ("none", "mean"):
        torch.library.opcheck(_operators.forward, (*views, *options, reduction, backend))
        losses, denominators, shares = _operators.forward(*views, *options, reduction, backend)
        upstream = torch.ones_like(losses)
        backward = (*views, *options, reduction, upstream, denominators, shares, given, backend)
        torch.library.opcheck(_operators.backward, backward)


@each_backend("nt_xent")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fake_tensors_have_the_real_shapes(backend: str, reduction: str, rng: torch.Generator) -> None:
    views = unit(rng, 2, 4, 8).half().unbind()
    real = nt_xent(*views, reduction=reduction, backend=backend)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = nt_xent(*(mode.from_tensor(view) for view in views), reduction=reduction, backend=backend)
    assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)


@each_backend("nt_xent", but=("triton",))
def test_autocast_converts_to_float32(backend: str, rng: torch.Generator) -> None:
    first, second = unit(rng, 6, 16).bfloat16().requires_grad_(), unit(rng, 6, 16).bfloat16()
    expected = nt_xent(first.float(), second.float(), backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(first, second, backend=backend)
        mixed = nt_xent(first.half(), second.float(), backend=backend)
        wide = nt_xent(first.double(), second.double(), backend=backend)
    assert torch.equal(mixed, nt_xent(first.half().float(), second.float(), backend=backend))
    assert torch.equal(loss, expected) and loss.dtype == torch.float32 and wide.dtype == torch.float64
    loss.backward()
    assert first.grad.dtype == torch.bfloat16


@each_backend("nt_xent", but=("reference",))
@pytest.mark.parametrize("requires_grad", [False, True])
def test_vmap_is_refused(backend: str, requires_grad: bool, rng: torch.Generator) -> None:
    views = unit(rng, 2, 4, 8).requires_grad_(requires_grad)
    with pytest.raises(NotImplementedError, match=r"nt_xent: vmap is not supported\. Call it once for each pair"):
        torch.func.vmap(lambda view: nt_xent(view, view, backend=backend))(views)


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("first-none", {"first": None}, TypeError, r"first must be a tensor \[N, D\]; got NoneType"),
    ("second-list", {"second": [ones(3, 4)]}, TypeError, r"second must be a tensor \[N, D\]; got list"),
    ("first-int", {"first": ones(3, 4).int()}, TypeError, r"first must be float16, .* got torch.int32"),
    ("second-sparse", {"second": ones(3, 4).to_sparse()}, TypeError, r"second must be dense.*to_dense"),
    ("first-3d", {"first": ones(2, 3, 4)}, ValueError, r"first must be \[N, D\]; got 3-D \[2, 3, 4\]"),
    ("no-rows", {"first": ones(0, 4)}, ValueError, r"at least one row and one dimension; got first \[0, 4\]"),
    ("no-dimension", {"first": ones(3, 0)}, ValueError, r"at least one row and one dimension; got first \[3, 0\]"),
    ("second-rows", {"second": ones(2, 4)}, ValueError, r"second must be \[N, D\] = \[3, 4\] as first; got \[2, 4\]"),
    ("second-dtype", {"second": ones(3, 4).half()}, TypeError, r"second must have the dtype of first, torch.float32"),
    ("second-device", {"second": ones(3, 4, device="meta")}, ValueError, r"second must be on the device of first"),
    ("temperature-zero", {"temperature": 0}, ValueError, r"temperature must be positive and finite; got 0"),
    ("temperature-nan", {"temperature": float("nan")}, ValueError, r"temperature must be positive and finite"),
    ("temperature-text", {"temperature": "1"}, TypeError, r"must be a number or a scalar tensor; got '1'"),
    ("temperature-bool", {"temperature": True}, TypeError, r"must be a number or a scalar tensor; got True"),
    ("temperature-1d", {"temperature": ones(1)}, ValueError, r"must be a scalar \[\]; got \[1\]\. Call \.squeeze\(\)"),
    ("temperature-int", {"temperature": torch.tensor(1)}, TypeError, r"temperature tensor must be float16"),
    ("temperature-device", {"temperature": torch.tensor(1.0, device="meta")}, ValueError, r"on the device of first"),
    ("temperature-value", {"temperature": torch.tensor(-1.0)}, ValueError, r"must be positive and finite; got -1\.0"),
    ("excluded-list", {"excluded": [0] * 6}, TypeError, r"excluded must be None or a tensor int64 \[2N\]; got list"),
    ("excluded-int32", {"excluded": ones(6).int()}, TypeError, r"excluded must be int64; got torch.int32"),
    ("excluded-short", {"excluded": ones(3).long()}, ValueError, r"excluded must be \[2N\] = \[6\],.*; got \[3\]"),
    ("excluded-device", {"excluded": ones(6, device="meta").long()}, ValueError, r"excluded must be on the device"),
    ("excluded-high", {"excluded": torch.tensor([-1] * 5 + [6])}, ValueError, r"excluded\[5\] must be -1 .* got 6"),
    ("excluded-low", {"excluded": torch.tensor([-2] + [-1] * 5)}, ValueError, r"excluded\[0\] must be -1 .* got -2"),
    ("excluded-positive", {"excluded": torch.tensor([4] * 6)}, ValueError, r"excluded\[1\] .* positive, row 4"),
    ("reduction", {"reduction": "avg"}, ValueError, r"reduction must be \"mean\", \"sum\" or \"none\"; got 'avg'"),
    ("backend", {"backend": "cuda"}, ValueError, r"backend must be auto, .*reference; got 'cuda'"),
]


@pytest.mark.parametrize(("change", "error", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"first": ones(3, 4), "second": ones(3, 4), "backend": "cpu"}
    mixfast.nt_xent(**good)
    with pytest.raises(error, match=r"nt_xent: .*" + message):
        mixfast.nt_xent(**{**good, **change})
