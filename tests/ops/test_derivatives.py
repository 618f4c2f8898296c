"""Derivatives by forward mode and by torch.func, of all operations and backends, against float64 in reverse mode."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad, gradcheck

import mixfast
from mixfast.ops import split_batch_norm
from tests.backends import device_of, each_backend, refusal

# torch's own doing, where forward mode is first used
quiet = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
pytestmark = [pytest.mark.slow, quiet]

BOXES, SIZE = torch.tensor([[0, 0, 3, 5], [2, 1, 9, 8], [4, 4, 4, 6]]), (8, 9)
FORWARD = "forward-mode derivatives"


class Case(NamedTuple):
    """A call as a function of the tensors that it is differentiable in, with whatever else it takes inside."""

    operation: str
    call: Callable[..., Tensor]  # of those tensors and a backend
    inputs: tuple[Tensor, ...]  # float64


def numbers(*shape: int) -> Tensor:
    """The same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Of the other's device, and of its dtype if it is made of floating-point numbers."""
    return tensor.to(other.device, other.dtype if tensor.is_floating_point() else None)


def infonce(rows: Sequence[int], reduction: str, valid: Sequence[int] | None = None, stacked: bool = False) -> Case:
    queues = [F.normalize(numbers(count, 6), dim=1) for count in (7, 5)]
    terms = len(rows)

    def call(temperature: Tensor, *tensors: Tensor, backend: str) -> Tensor:
        halves: Any = tensors if stacked else (tensors[:terms], tensors[terms:])
        losses = mixfast.multi_queue_infonce(
            *halves,
            [like(queue, temperature) for queue in queues],
            [t % 2 for t in range(terms)],
            temperature=temperature,
            valid_len=None if valid is None else torch.tensor(valid).to(temperature.device),
            reduction=reduction,
            backend=backend,
        )
        return torch.cat(losses) if isinstance(losses, list) else losses

    shapes = [(terms, rows[0], 6)] * 2 if stacked else [(count, 6) for count in (*rows, *rows)]
    tensors = [F.normalize(numbers(*shape) + i, dim=-1) for i, shape in enumerate(shapes)]
    return Case("multi_queue_infonce", call, (torch.linspace(0.3, 0.5, terms).double(), *tensors))


def nt_xent(reduction: str) -> Case:
    def call(first: Tensor, second: Tensor, temperature: Tensor, backend: str) -> Tensor:
        excluded = torch.tensor([1, -1, 7, 0, 3, 4, -1, 2]).to(first.device)
        return mixfast.nt_xent(
            first, second, temperature=temperature, excluded=excluded, reduction=reduction, backend=backend
        )

    views = F.normalize(numbers(2, 4, 6), dim=2).unbind()
    return Case("nt_xent", call, (*views, torch.tensor(0.4, dtype=torch.float64)))


def pool(regions: Tensor, ready: bool = False) -> Case:
    def call(features: Tensor, backend: str) -> Tensor:
        where, size = like(regions, features), SIZE if regions.ndim == 2 else None
        if not ready:
            return torch.stack(mixfast.masked_upsample_pool(features, where, size, backend=backend))
        weights = mixfast.region_weights(where, size, (3, 2), dtype=features.dtype, backend=backend)
        return torch.stack(mixfast.weighted_pool(features, weights, backend=backend))

    return Case("masked_upsample_pool", call, (numbers(3, 4, 3, 2),))


def norm(memory_format: torch.memory_format) -> Case:
    def call(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        running = weight.detach().new_zeros(3), weight.detach().new_ones(3)
        return split_batch_norm(x, weight, bias, *running, num_splits=2, eps=0.1, backend=backend)

    x = numbers(4, 3, 2, 3).contiguous(memory_format=memory_format)
    return Case("split_batch_norm", call, (x, numbers(3), numbers(3)))


def norm_relu() -> Case:
    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, backend: str) -> Tensor:
        options = {"num_splits": 2, "eps": 0.1, "relu": True, "residual": residual}
        return split_batch_norm(x, weight, bias, **options, backend=backend)

    return Case("split_batch_norm", call, (numbers(4, 3, 2, 3), numbers(3), numbers(3), numbers(4, 3, 2, 3).flip(0)))


CASES = {
    "infonce": infonce((3, 1, 4), "mean"),
    "infonce-rows": infonce((3, 1, 4), "none"),
    "infonce-stacked": infonce((3, 3), "sum", (4, 0), stacked=True),
    "nt_xent": nt_xent("mean"),
    "nt_xent-sum": nt_xent("sum"),
    "boxes": pool(BOXES),
    "mask": pool(numbers(3, 6, 5).sigmoid()),
    "weights": pool(BOXES, ready=True),
    "norm": norm(torch.contiguous_format),
    "norm-channels-last": norm(torch.channels_last),
    "norm-relu": norm_relu(),
}


def each_case(*but: str) -> Callable[[Callable[..., None]], Any]:
    """Parametrises over all cases and backends of an operation, less the backends in `but`."""
    params = []
    for name, case in CASES.items():
        for backend in each_backend(case.operation, but=but).args[1]:
            params.append(pytest.param(name, *backend.values, marks=backend.marks, id=f"{name}-{backend.id}"))
    return pytest.mark.parametrize(("name", "backend"), params)


def ready(name: str, backend: str) -> tuple[Callable[..., Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """The sum of the results times fixed numbers as a function, its inputs, tangents, and the gradients expected."""
    case = CASES[name]
    exact = [tensor.clone().requires_grad_() for tensor in case.inputs]
    results = case.call(*exact, backend="reference")
    upstream = numbers(*results.shape)
    gradients = torch.autograd.grad((results * upstream).sum(), exact)

    def run(*tensors: Tensor) -> Tensor:
        results = case.call(*tensors, backend=backend)
        return (results * like(upstream, results)).sum()

    inputs, tangents = (
        [tensor.float().to(device_of(backend)) for tensor in tensors]
        for tensors in (case.inputs, [numbers(*tensor.shape, 1)[..., 0] for tensor in case.inputs])
    )
    return run, inputs, tangents, [gradient.float() for gradient in gradients]


def compare(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, check_device=False)


def check_forward_mode(name: str, backend: str, singly: bool = True) -> None:
    """By torch.func.jvp of all inputs, and `singly` by dual tensors whose primal requires a gradient or not."""
    run, inputs, tangents, gradients = ready(name, backend)
    products = [(a.cpu() * b).sum() for a, b in zip(tangents, gradients, strict=True)]
    compare(torch.func.jvp(run, tuple(inputs), tuple(tangents))[1], sum(products))
    for i, (x, tangent, expected) in enumerate(zip(inputs, tangents, products, strict=True) if singly else ()):
        for primal in (x, x.clone().requires_grad_()):
            with forward_ad.dual_level():
                others = [*inputs[:i], forward_ad.make_dual(primal, tangent), *inputs[i + 1 :]]
                with torch.set_grad_enabled(i != 0):  # which is no matter of forward mode
                    compare(forward_ad.unpack_dual(run(*others)).tangent, expected)


def check_gradients(name: str, backend: str) -> None:
    run, inputs, _, gradients = ready(name, backend)
    compare(torch.func.grad(run, tuple(range(len(inputs))))(*inputs), tuple(gradients))
    value, pull = torch.func.vjp(run, *inputs)
    compare(pull(torch.ones_like(value)), tuple(gradients))


@each_case()
def test_forward_mode(name: str, backend: str) -> None:
    check_forward_mode(name, backend)


@each_case()
def test_gradients_by_torch_func(name: str, backend: str) -> None:
    check_gradients(name, backend)


@each_case()
def test_jacobians(name: str, backend: str) -> None:
    """Which map a backward or a forward pass over several gradients or tangents."""
    if (name, backend) == ("norm-channels-last", "reference"):
        pytest.skip("torch changes no layout under vmap")
    run, inputs, _, gradients = ready(name, backend)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        compare(jacobian(run, tuple(range(len(inputs))))(*inputs), tuple(gradients))


@each_case()
def test_gradcheck_in_both_modes(name: str, backend: str) -> None:
    operation, call, inputs = CASES[name]
    facts = {"multi_queue_infonce": (torch.float64, 6), "nt_xent": (6,)}.get(operation, ())
    reason = refusal(operation, backend, torch.float64, *facts)
    if reason is not None:
        pytest.skip(reason)
    leaves = [tensor.to(device_of(backend), copy=True).requires_grad_() for tensor in inputs]
    assert gradcheck(lambda *tensors: call(*tensors, backend=backend), leaves, check_forward_ad=True)


NESTED: dict[str, Callable[..., Tensor]] = {
    "hessian": lambda f, x, t: torch.func.hessian(f)(x) @ t,
    "grad of grad": lambda f, x, t: torch.func.grad(lambda y: torch.func.grad(f)(y) @ t)(x),
    "jvp of grad": lambda f, x, t: torch.func.jvp(torch.func.grad(f), (x,), (t,))[1],
    "grad of jvp": lambda f, x, t: torch.func.grad(lambda y: torch.func.jvp(f, (y,), (t,))[1])(x),
    "jvp of jvp": lambda f, x, t: torch.func.jvp(lambda y: torch.func.jvp(f, (y,), (t,))[1], (x,), (t,))[1],
}


def dual_of_backward(f: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), t)
        (grad,) = torch.autograd.grad(f(dual), dual)  # without create_graph: nothing but the tangent tells
        tangent = forward_ad.unpack_dual(grad).tangent
    assert tangent is not None
    return tangent


def backward_of_dual(f: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(leaf, t))).tangent
        assert tangent is not None
        return torch.autograd.grad(tangent + 0 * leaf.sum(), leaf)[0]  # the sum: a lost term would leave a number


NESTED |= {"dual of backward": dual_of_backward, "backward of dual": backward_of_dual}


def check_nested(name: str, backend: str, kind: str) -> None:
    """Second derivatives are right where an operation is linear, and raise elsewhere: none is silently zero."""
    operation, call, inputs = CASES[name]
    *before, last = [tensor.float().to(device_of(backend)) for tensor in inputs]
    scale = torch.linspace(0.5, 1.5, last.numel(), device=last.device)

    def run(x: Tensor, backend: str = backend) -> Tensor:
        result: Tensor = call(*before, (x * scale).sin().view(last.shape), backend=backend).pow(2).sum()
        return result

    x = last.flatten()
    if operation == "masked_upsample_pool":
        compare(NESTED[kind](run, x, scale), NESTED[kind](lambda x: run(x, "reference"), x, scale).cpu())
        return
    with pytest.raises(NotImplementedError, match=rf"{operation}: second derivatives .*backend='reference'"):
        NESTED[kind](run, x, scale)


@each_case("reference")
@pytest.mark.parametrize("kind", NESTED)
def test_second_derivatives(name: str, backend: str, kind: str) -> None:
    check_nested(name, backend, kind)


def test_vmap_of_a_gradient_of_pooling() -> None:
    """With regions and features mapped, and channels last."""
    features = numbers(5, 3, 4, 3, 2).contiguous(memory_format=torch.channels_last_3d)
    boxes = torch.stack([BOXES.roll(k, 0) for k in range(5)])

    def loss(x: Tensor, where: Tensor) -> Tensor:
        inside, outside = mixfast.masked_upsample_pool(x, where, SIZE)
        return (inside * outside).sum()

    mapped = torch.vmap(torch.func.grad(loss))(features, boxes)
    single = [torch.func.grad(loss)(x, where) for x, where in zip(features, boxes, strict=True)]
    torch.testing.assert_close(mapped, torch.stack(single))


def test_statistics_move_once_under_a_transform() -> None:
    x, (mean, var) = numbers(4, 3, 2, 3).float(), (torch.zeros(3), torch.ones(3))
    expected = mean.clone(), var.clone()
    split_batch_norm(x, torch.ones(3), torch.zeros(3), *expected, num_splits=2)
    torch.func.jvp(
        lambda x: split_batch_norm(x, torch.ones(3), torch.zeros(3), mean, var, num_splits=2).sum(), (x,), (x,)
    )
    assert torch.equal(mean, expected[0]) and torch.equal(var, expected[1]) and mean.count_nonzero() == 3


UNIT, BASE, MASK = numbers(4, 6).float(), numbers(3, 4, 3, 2).float(), numbers(3, 6, 5).sigmoid().float()
WEIGHTS, IMAGES = mixfast.region_weights(BOXES, SIZE, (3, 2)), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
VIEWS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
WITHOUT: dict[str, tuple[str, Callable[[Tensor], Any], Tensor]] = {
    "queues": ("multi_queue_infonce", lambda x: mixfast.multi_queue_infonce([UNIT], [UNIT], [UNIT, x], [0]), UNIT),
    "reduction='none'": ("nt_xent", lambda x: mixfast.nt_xent(x, UNIT, reduction="none"), UNIT),
    "regions": ("masked_upsample_pool", lambda x: mixfast.masked_upsample_pool(BASE, x), MASK),
    "regions of weights": ("region_weights", lambda x: mixfast.region_weights(x, None, (3, 2)), MASK),
    "weights": ("weighted_pool", lambda x: mixfast.weighted_pool(BASE, x), WEIGHTS),
    "running_mean": (
        "split_batch_norm",
        lambda x: split_batch_norm(BASE, UNIT[0, :4], UNIT[0, :4], x, x, num_splits=1),
        torch.ones(4),
    ),
    "base": ("mix_views", lambda x: mixfast.mix_views(x, BASE, BOXES, BASE[:, 0, 0, 0]), BASE),
    "donor": ("mix_views", lambda x: mixfast.mix_views(BASE, x, BOXES, BASE[:, 0, 0, 0]), BASE),
    "share": ("mix_views", lambda x: mixfast.mix_views(BASE, BASE, BOXES, x), BASE[:, 0, 0, 0]),
    "parameters": ("augment_views", lambda x: mixfast.augment_views(IMAGES, x, **VIEWS)[0], torch.ones(1, 2, 16)),
}


@pytest.mark.parametrize("argument", WITHOUT)
@pytest.mark.parametrize("outer", [False, True])
def test_a_tangent_that_would_be_dropped_raises(argument: str, outer: bool) -> None:
    """Also that of an outer transform, inside of which the tensor is a plain one."""
    operation, call, x = WITHOUT[argument]

    def inner(x: Tensor) -> Any:
        return torch.func.jvp(lambda y: (call(x), y)[1], (UNIT,), (UNIT,)) if outer else call(x)

    with pytest.raises(NotImplementedError, match=rf"{operation}: {FORWARD} .*{re.escape(argument.split()[0])}"):
        torch.func.jvp(inner, (x,), (x,))
    with forward_ad.dual_level():
        call(x)  # without a tangent there is nothing to drop


@pytest.mark.parametrize("argument", ["base", "donor", "share", "parameters"])
def test_a_view_that_requires_a_gradient_raises(argument: str) -> None:
    operation, call, x = WITHOUT[argument]
    leaf = x.clone().requires_grad_()
    with pytest.raises(ValueError, match=rf"{operation}: {argument} receives no gradient.*{argument}\.detach\(\)"):
        call(leaf)
    with torch.no_grad():
        assert not call(leaf).requires_grad


COMPILED: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "multi_queue_infonce": (lambda x: mixfast.multi_queue_infonce([x], [UNIT], [UNIT], [0]).sum(), UNIT + 1),
    "masked_upsample_pool": (lambda x: mixfast.masked_upsample_pool(x, BOXES, SIZE)[0].sum(), BASE),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the frames that torch.compile goes on with
@pytest.mark.parametrize("operation", COMPILED)
def test_transforms_and_compiled_functions(operation: str) -> None:
    """A transform inside raises in a whole graph and is left to eager execution otherwise, as is a dual tensor."""
    call, x = COMPILED[operation]
    torch._dynamo.reset()
    gradient = torch.func.grad(call)
    torch.testing.assert_close(torch.compile(gradient, backend="eager")(x), gradient(x))
    compiled = torch.compile(call, backend="eager")
    compiled(x)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(compiled(forward_ad.make_dual(x, x))).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, (gradient(x) * x).sum(), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    for derivative in (gradient, lambda x: torch.func.jvp(call, (x,), (x,))[1]):
        with pytest.raises(Exception, match=rf"{operation}: torch\.func\.grad, jvp .*backend='reference'"):
            torch.compile(derivative, backend="eager", fullgraph=True)(x)
