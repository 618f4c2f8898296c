"""split_batch_norm as a citizen of torch: compile, opcheck, autocast, vmap, derivatives; bad input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.ops import split_batch_norm
from mixfast.ops.norm import _operators
from tests.backends import each_backend
from tests.ops.splitnorm import FORMATS

pytestmark = pytest.mark.slow

ones = torch.ones
Layer = Callable[..., Tensor]


def leaves(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, weight and bias."""
    channels = shape[1]
    sizes = (shape, (channels,), (channels,))
    return [torch.randn(*size, generator=rng, dtype=dtype).requires_grad_() for size in sizes]


def layer(backend: str, splits: int = 2) -> Layer:
    return lambda x, weight, bias: split_batch_norm(x, weight, bias, num_splits=splits, eps=0.1, backend=backend)


@each_backend("split_batch_norm", but=("reference",))
def test_second_derivative_raises(backend: str, rng: torch.Generator) -> None:
    x, weight, bias = leaves(rng, 4, 3, 2, 2, dtype=torch.float32)
    (grad,) = torch.autograd.grad(layer(backend)(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(
        NotImplementedError, match=r"split_batch_norm: second derivatives are not .*backend='reference'"
    ):
        grad.sum().backward()


def test_reference_has_second_derivatives(rng: torch.Generator) -> None:
    assert torch.autograd.gradgradcheck(layer("reference"), leaves(rng, 4, 2, 1, 2))


@each_backend("split_batch_norm", but=("reference", "triton"))
@pytest.mark.parametrize(("dynamic", "memory_format"), [*zip((False, True), FORMATS, strict=True)], ids=str)
def test_compile_whole_graph(
    backend: str, dynamic: bool, memory_format: torch.memory_format, rng: torch.Generator
) -> None:
    """Running statistics move as they do in eager mode, whether a gradient is wanted or not."""

    def forward(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        y = split_batch_norm(x * 2, weight, bias, mean, var, num_splits=2, backend=backend)
        options = {"num_splits": 1, "relu": True, "residual": x, "backend": backend}
        return split_batch_norm(y.relu_(), weight, bias, mean, var, **options) + 1

    torch._dynamo.reset()  # all cases compile one function, of which dynamo keeps eight versions at most
    compiled = torch.compile(forward, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (6, 4) if dynamic else (6,):  # a static graph is made anew for every size
        x, weight, bias = leaves(rng, batch, 3, 4, 5, dtype=torch.float32)
        x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
        found = []
        for run in (forward, compiled):
            mean, var = torch.zeros(3), ones(3)
            y = run(x, weight, bias, mean, var)
            grads = torch.autograd.grad(y.square().sum(), (x, weight, bias))
            with torch.no_grad():
                again = run(x, weight, bias, mean, var)
            found.append((y, *grads, mean, var, again))
            assert y.is_contiguous(memory_format=memory_format)
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@each_backend("split_batch_norm", but=("reference", "triton"))
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_opcheck(backend: str, everything: bool, memory_format: torch.memory_format, rng: torch.Generator) -> None:
    x = torch.randn(4, 3, 2, 5, generator=rng).contiguous(memory_format=memory_format)
    optional = (torch.zeros(3), ones(3), x.flip(0)) if everything else (None, None, None)
    arguments = (x, ones(3), torch.zeros(3), *optional, 2, 0.1, 1e-5, everything, backend)
    torch.library.opcheck(_operators.forward, arguments)
    y, *statistics = _operators.forward(*arguments)
    mask = y if everything else None
    torch.library.opcheck(_operators.backward, (y, x, mask, ones(3), *statistics, 2, everything, backend))


@each_backend("split_batch_norm")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_fake_tensors_have_the_real_shapes(
    backend: str, memory_format: torch.memory_format, rng: torch.Generator
) -> None:
    x = torch.randn(4, 6, 3, 5, generator=rng).half().contiguous(memory_format=memory_format)
    for given in (x, x[:, ::2]):
        parameters = ones(given.shape[1]), ones(given.shape[1])
        real = layer(backend)(given, *parameters)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = layer(backend)(*(mode.from_tensor(each) for each in (given, *parameters)))
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@each_backend("split_batch_norm", but=("triton",))
def test_autocast_leaves_it_alone(backend: str, rng: torch.Generator) -> None:
    x, weight, bias = leaves(rng, 4, 3, 2, 2, dtype=torch.float32)
    short = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [layer(backend)(each, weight, bias) for each in (x, short)]
    assert torch.equal(outputs[0], layer(backend)(x, weight, bias))
    assert torch.equal(outputs[1], layer(backend)(short, weight, bias)) and outputs[1].dtype == torch.bfloat16
    outputs[1].sum().backward()
    assert short.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32


@each_backend("split_batch_norm", but=("reference",))
@pytest.mark.parametrize("requires_grad", [False, True])
def test_vmap_is_refused(backend: str, requires_grad: bool, rng: torch.Generator) -> None:
    x = torch.randn(2, 4, 3, 2, 2, generator=rng).requires_grad_(requires_grad)
    with pytest.raises(NotImplementedError, match=r"split_batch_norm: vmap is not supported\. Call it once for each"):
        torch.func.vmap(lambda each: layer(backend)(each, ones(3), ones(3)))(x)


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("x-list", {"x": [1]}, TypeError, r"x must be a tensor \[B, C, H, W\]; got list"),
    ("x-int", {"x": ones(4, 3, 2, 2).int()}, TypeError, r"x must be float16, .*; got torch.int32"),
    ("x-sparse", {"x": ones(4, 3, 2, 2).to_sparse()}, TypeError, r"x must be dense; got layout torch.sparse_coo"),
    ("x-3d", {"x": ones(4, 3, 2)}, ValueError, r"x must be \[B, C, H, W\]; got 3-D \[4, 3, 2\]"),
    ("x-no-channels", {"x": ones(4, 0, 2, 2)}, ValueError, r"at least one channel; got \[4, 0, 2, 2\]"),
    ("x-no-samples", {"x": ones(0, 3, 2, 2)}, ValueError, r"needs two numbers of each .*; got \[0, 3, 2, 2\]"),
    ("x-one-number", {"x": ones(2, 3, 1, 1)}, ValueError, r"num_splits = 2 groups needs two numbers .*; got \[2, 3,"),
    ("batch", {"x": ones(5, 3, 2, 2)}, ValueError, r"a multiple of num_splits = 2 samples; got B = 5"),
    ("splits-float", {"num_splits": 2.0}, TypeError, r"num_splits must be an integer; got 2\.0"),
    ("splits-bool", {"num_splits": True}, TypeError, r"num_splits must be an integer; got True"),
    ("splits-zero", {"num_splits": 0}, ValueError, r"num_splits must be at least 1; got 0"),
    ("weight-none", {"weight": None}, TypeError, r"weight must be a tensor \[C\]; got NoneType"),
    ("weight-half", {"weight": ones(3).half()}, TypeError, r"weight must be torch.float32 .* got torch.float16\. Keep"),
    ("bias-shape", {"bias": ones(4)}, ValueError, r"bias must be \[C\] = \[3\]; got \[4\]"),
    ("bias-device", {"bias": ones(3, device="meta")}, ValueError, r"bias must be on the device of x, cpu; got meta"),
    ("bias-strided", {"bias": ones(6)[::2]}, ValueError, r"bias must be contiguous; got strides \(2,\)"),
    ("double", {"x": ones(4, 3, 2, 2).double()}, TypeError, r"weight must be torch.float64 .*; got torch.float32"),
    ("mean-alone", {"running_mean": ones(3)}, TypeError, r"running_mean and running_var must both be tensors, or both"),
    (
        "running-gradient",
        {"running_mean": ones(3), "running_var": ones(3, requires_grad=True)},
        ValueError,
        r"running_var is written in place and must not require a gradient",
    ),
    ("momentum", {"momentum": 1.5}, ValueError, r"momentum must be in \[0, 1\]; got 1\.5"),
    ("momentum-none", {"momentum": None}, TypeError, r"momentum must be a number; got None"),
    ("eps", {"eps": 0.0}, ValueError, r"eps must be positive and finite; got 0\.0"),
    ("relu", {"relu": 1}, TypeError, r"relu must be True or False; got 1"),
    ("residual", {"residual": 0.0}, TypeError, r"residual must be a tensor \[B, C, H, W\], or None; got float"),
    ("residual-dtype", {"residual": ones(4, 3, 2, 2).half()}, TypeError, r"residual must have the dtype of x, torch.f"),
    ("residual-shape", {"residual": ones(4, 3, 1, 1)}, ValueError, r"shape of x, \[4, 3, 2, 2\]; got \[4, 3, 1, 1\]"),
    ("backend", {"backend": "cpp"}, ValueError, r"backend must be auto, .*reference; got 'cpp'"),
]


@pytest.mark.parametrize(("change", "error", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"x": ones(4, 3, 2, 2), "weight": ones(3), "bias": ones(3), "num_splits": 2, "backend": "cpu"}
    split_batch_norm(**good)
    with pytest.raises(error, match=r"split_batch_norm: .*" + message):
        split_batch_norm(**{**good, **change})
