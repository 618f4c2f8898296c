"""multi_queue_infonce as a citizen of torch: compile, opcheck, autocast, gradcheck, vmap, second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.ops.multi_queue_infonce import _operators, multi_queue_infonce
from tests.backends import each_backend

INDEX = [1, 0, 1]


def unit(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=rng, dtype=dtype), dim=-1)


@each_backend("multi_queue_infonce")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(backend: str, reduction: str, rng: torch.Generator) -> None:
    queries = [unit(rng, n, 5, dtype=torch.float64).requires_grad_() for n in (3, 1, 4)]
    positives = [unit(rng, n, 5, dtype=torch.float64).requires_grad_() for n in (3, 1, 4)]
    queues = [unit(rng, k, 5, dtype=torch.float64) for k in (6, 9)]
    temperature = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64, requires_grad=True)

    def losses(temperature: Tensor, *tensors: Tensor) -> object:
        out = multi_queue_infonce(
            tensors[:3], tensors[3:], queues, INDEX, temperature=temperature, reduction=reduction, backend=backend
        )
        return tuple(out) if reduction == "none" else out

    assert torch.autograd.gradcheck(losses, (temperature, *queries, *positives))


@each_backend("multi_queue_infonce", but=("reference",))
def test_second_derivative_raises(backend: str, rng: torch.Generator) -> None:
    query = unit(rng, 4, 8).requires_grad_()
    loss = multi_queue_infonce([query], [unit(rng, 4, 8)], [unit(rng, 9, 8)], [0], backend=backend)
    (grad,) = torch.autograd.grad(loss.sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivatives are not implemented.*backend='reference'"):
        grad.sum().backward()


def test_reference_has_second_derivatives(rng: torch.Generator) -> None:
    query, positive = (unit(rng, 3, 4, dtype=torch.float64) for _ in range(2))
    queues = [unit(rng, 5, 4, dtype=torch.float64)]

    def loss(q: Tensor) -> Tensor:
        return multi_queue_infonce([q], [positive], queues, [0], temperature=0.5, backend="reference")

    assert torch.autograd.gradgradcheck(loss, (query.requires_grad_(),))


@each_backend("multi_queue_infonce")
def test_a_queue_may_change_before_backward(backend: str, rng: torch.Generator) -> None:
    query, positive, queue = unit(rng, 4, 8).requires_grad_(), unit(rng, 4, 8), unit(rng, 9, 8)
    (expected,) = torch.autograd.grad(multi_queue_infonce([query], [positive], [queue], [0], backend=backend), query)
    loss = multi_queue_infonce([query], [positive], [queue.clone()], [0], backend=backend)
    queue.zero_()
    loss.backward()
    torch.testing.assert_close(query.grad, expected)


@each_backend("multi_queue_infonce")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_whole_graph(backend: str, dynamic: bool, rng: torch.Generator) -> None:
    queues = [unit(rng, 20, 8), unit(rng, 11, 8)]

    def losses(queries: Tensor, positives: list[Tensor], temperature: Tensor) -> tuple[Tensor, ...]:
        stacked = multi_queue_infonce(queries, positives, queues, INDEX, temperature=temperature, backend=backend)
        rows = multi_queue_infonce(list(queries), positives, queues, INDEX, reduction="none", backend=backend)
        return (stacked * 2).sum(), rows[1].sum()

    compiled = torch.compile(losses, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (6, 4):
        queries = unit(rng, 3, n, 8).requires_grad_()
        positives = [unit(rng, n, 8).requires_grad_() for _ in range(3)]
        temperature = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
        leaves = (queries, *positives, temperature)
        ours = torch.autograd.grad(sum(compiled(queries, positives, temperature)), leaves)
        theirs = torch.autograd.grad(sum(losses(queries, positives, temperature)), leaves)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


@each_backend("multi_queue_infonce", but=("reference",))
@pytest.mark.parametrize("stacked", [False, True])
def test_opcheck(backend: str, stacked: bool, rng: torch.Generator) -> None:
    def rows() -> list[Tensor]:
        return [unit(rng, 3, 4, 8)] if stacked else [unit(rng, n, 8) for n in (4, 1, 2)]

    queues, temperature = [unit(rng, 9, 8), unit(rng, 5, 8)], torch.tensor([0.1, 0.2, 0.3])
    for reduction in ("none", "mean"):
        queries = rows()
        forward = (queries, rows(), queues, INDEX, temperature, [], reduction, True, backend)
        torch.library.opcheck(_operators.forward, forward)
        losses, grad_queries, share = _operators.forward(*forward)
        needs = [True, reduction == "mean", True]
        backward = (losses, grad_queries, share, queries, temperature, [], reduction, needs, backend)
        torch.library.opcheck(_operators.backward, backward)


@each_backend("multi_queue_infonce", but=("reference",))
def test_fake_tensors_have_the_real_shapes(backend: str, rng: torch.Generator) -> None:
    arguments = ([unit(rng, 4, 8).half()] * 3, [unit(rng, 4, 8).half()] * 3, [unit(rng, 9, 8)], [0] * 3)
    real = multi_queue_infonce(*arguments, backend=backend)
    with torch._subclasses.FakeTensorMode() as mode:
        fake_arguments = [[mode.from_tensor(t) for t in tensors] for tensors in arguments[:3]]
        fake = multi_queue_infonce(*fake_arguments, [0] * 3, backend=backend)
    assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)


@each_backend("multi_queue_infonce")
def test_autocast_converts_queries_and_positives_to_float32(backend: str, rng: torch.Generator) -> None:
    query, positive, queue = (
        unit(rng, 6, 16).bfloat16().requires_grad_(),
        unit(rng, 6, 16).bfloat16(),
        unit(rng, 20, 16),
    )
    expected = multi_queue_infonce([query.float()], [positive.float()], [queue], [0], backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = multi_queue_infonce([query], [positive], [queue], [0], backend=backend)
        both = torch.stack([query, query])
        stacked = multi_queue_infonce(both, torch.stack([positive, positive]), [queue], [0, 0], backend=backend)
        wide = multi_queue_infonce([query.double()], [positive.double()], [queue.double()], [0], backend=backend)
    assert torch.equal(loss, expected) and loss.dtype == torch.float32 and wide.dtype == torch.float64
    torch.testing.assert_close(stacked, expected.expand(2))
    loss.backward()
    assert query.grad.dtype == torch.bfloat16


@each_backend("multi_queue_infonce", but=("reference",))
@pytest.mark.parametrize("requires_grad", [False, True])
def test_vmap_is_refused(backend: str, requires_grad: bool, rng: torch.Generator) -> None:
    queries = unit(rng, 2, 4, 8).requires_grad_(requires_grad)
    queues = [unit(rng, 9, 8)]
    with pytest.raises(
        NotImplementedError, match=r"vmap is not supported\. Pass the mapped dimension as further terms"
    ):
        torch.func.vmap(lambda q: multi_queue_infonce([q], [q], queues, [0], backend=backend))(queries)


def test_environment_variable_chooses_the_backend(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    query, queue = unit(rng, 4, 8).requires_grad_(), unit(rng, 9, 8)
    monkeypatch.setenv("MIXFAST_BACKEND", "reference")
    loss = multi_queue_infonce([query], [query.detach()], [queue], [0])
    (grad,) = torch.autograd.grad(loss, query, create_graph=True)
    assert grad.requires_grad  # which the reference backend alone has
    torch.autograd.grad(grad.sum(), query)
