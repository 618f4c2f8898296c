"""multi_queue_infonce as a citizen of torch: compile, opcheck, autocast, vmap, second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.ops.infonce import _operators, multi_queue_infonce
from tests.backends import device_of, each_backend
from tests.ops.infonce import place

pytestmark = pytest.mark.slow

INDEX = [1, 0, 1]


def unit(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32, backend: str = "reference") -> Tensor:
    return F.normalize(torch.randn(*shape, generator=rng, dtype=dtype), dim=-1).to(device_of(backend))


@each_backend("multi_queue_infonce", but=("reference",))
@pytest.mark.parametrize("by", ["query", "positive", "temperature"])
def test_second_derivative_raises(backend: str, by: str, rng: torch.Generator) -> None:
    tensors = {name: unit(rng, 4, 8, backend=backend) for name in ("query", "positive")}
    tensors["temperature"] = torch.full((1,), 0.5, device=tensors["query"].device)
    variable, queue = tensors[by].requires_grad_(), unit(rng, 9, 8, backend=backend)
    loss = multi_queue_infonce(
        [tensors["query"]], [tensors["positive"]], [queue], [0], temperature=tensors["temperature"], backend=backend
    )
    (grad,) = torch.autograd.grad(loss.sum(), variable, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivatives are not implemented.*backend='reference'"):
        torch.autograd.grad((grad + variable).sum(), variable)  # the sum: a lost term would leave a plausible number


def test_reference_has_second_derivatives(rng: torch.Generator) -> None:
    query, positive = (unit(rng, 3, 4, dtype=torch.float64) for _ in range(2))
    queues = [unit(rng, 5, 4, dtype=torch.float64)]

    def loss(q: Tensor) -> Tensor:
        return multi_queue_infonce([q], [positive], queues, [0], temperature=0.5, backend="reference")

    assert torch.autograd.gradgradcheck(loss, (query.requires_grad_(),))


@each_backend("multi_queue_infonce")
def test_a_queue_may_change_before_backward(backend: str, rng: torch.Generator) -> None:
    query, positive, queue = (unit(rng, n, 8, backend=backend) for n in (4, 4, 9))
    query.requires_grad_()
    (expected,) = torch.autograd.grad(multi_queue_infonce([query], [positive], [queue], [0], backend=backend), query)
    loss = multi_queue_infonce([query], [positive], [queue], [0], backend=backend)
    queue.zero_()
    if backend == "reference":  # a matrix product of torch's, which saves its factors
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        return
    loss.backward()
    torch.testing.assert_close(query.grad, expected)


@each_backend("multi_queue_infonce")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_whole_graph(backend: str, dynamic: bool, rng: torch.Generator) -> None:
    queues = [unit(rng, k, 8, backend=backend) for k in (20, 11)]

    def losses(queries: Tensor, positives: list[Tensor], temperature: Tensor) -> tuple[Tensor, ...]:
        stacked = multi_queue_infonce(queries, positives, queues, INDEX, temperature=temperature, backend=backend)
        rows = multi_queue_infonce(list(queries), positives, queues, INDEX, reduction="none", backend=backend)
        return (stacked * 2).sum(), rows[1].sum()

    compiled = torch.compile(losses, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (6, 4) if dynamic else (6,):  # a static graph is made anew for every size
        queries = unit(rng, 3, n, 8, backend=backend).requires_grad_()
        positives = [unit(rng, n, 8, backend=backend).requires_grad_() for _ in range(3)]
        temperature = place(backend, torch.tensor([0.1, 0.2, 0.3])).requires_grad_()
        leaves = (queries, *positives, temperature)
        ours = torch.autograd.grad(sum(compiled(queries, positives, temperature)), leaves)
        theirs = torch.autograd.grad(sum(losses(queries, positives, temperature)), leaves)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


@each_backend("multi_queue_infonce")
def test_compile_with_tensors_given_twice(backend: str, rng: torch.Generator) -> None:
    positive, queue = unit(rng, 4, 8, backend=backend), unit(rng, 9, 8, backend=backend)

    def loss(query: Tensor) -> Tensor:
        rows = [query, query, query * 2]
        return multi_queue_infonce(rows, [positive] * 3, [queue, queue], INDEX, backend=backend).square().sum()

    query = unit(rng, 4, 8, backend=backend).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(each(query), query)[0] for each in (compiled, loss))
    torch.testing.assert_close(ours, theirs)


@each_backend("multi_queue_infonce", but=("reference",))
@pytest.mark.parametrize("stacked", [False, True])
def test_opcheck(backend: str, stacked: bool, rng: torch.Generator) -> None:
    def rows() -> list[Tensor]:
        shapes = [(3, 4, 8)] if stacked else [(n, 8) for n in (4, 1, 2)]
        return [unit(rng, *shape, backend=backend) for shape in shapes]

    queues = [unit(rng, k, 8, backend=backend) for k in (9, 5)]
    temperature = place(backend, torch.tensor([0.1, 0.2, 0.3]))
    for reduction in ("none", "mean"):
        queries = rows()
        terms = queries, temperature, [], reduction
        forward = (*terms, rows(), queues, INDEX, None, True, backend)
        torch.library.opcheck(_operators.forward, forward)
        losses, grad_queries, share = _operators.forward(*forward)
        needs = [True, reduction == "mean", True]
        backward = (*terms, losses, grad_queries, share, needs, backend)
        torch.library.opcheck(_operators.backward, backward)


@each_backend("multi_queue_infonce", but=("reference",))
def test_fake_tensors_have_the_real_shapes(backend: str, rng: torch.Generator) -> None:
    query, queue = unit(rng, 4, 8, backend=backend).half(), unit(rng, 9, 8, backend=backend)
    arguments = ([query] * 3, [query.clone()] * 3, [queue], [0] * 3)
    real = multi_queue_infonce(*arguments, backend=backend)
    with torch._subclasses.FakeTensorMode() as mode:
        fake_arguments = [[mode.from_tensor(t) for t in tensors] for tensors in arguments[:3]]
        fake = multi_queue_infonce(*fake_arguments, [0] * 3, backend=backend)
    assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)


@each_backend("multi_queue_infonce")
def test_autocast_converts_queries_and_positives(backend: str, rng: torch.Generator) -> None:
    """To float32 like the input of a loss on a CPU, and to float16 like that of a matrix product on a GPU."""
    query, positive, queue = (unit(rng, n, 16, backend=backend) for n in (6, 6, 20))
    query, positive, device = query.bfloat16().requires_grad_(), positive.bfloat16(), device_of(backend)
    converted = torch.float32 if device == "cpu" else torch.float16
    expected = multi_queue_infonce([query.to(converted)], [positive.to(converted)], [queue], [0], backend=backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = multi_queue_infonce([query], [positive], [queue], [0], backend=backend)
        both = torch.stack([query, query])
        stacked = multi_queue_infonce(both, torch.stack([positive, positive]), [queue], [0, 0], backend=backend)
        mixed = multi_queue_infonce([query], [positive.float()], [queue], [0], backend=backend)
        # no backend of a GPU but the reference has float64
        wide = multi_queue_infonce([query.double()], [positive.double()], [queue.double()], [0], backend="reference")
    assert torch.equal(mixed, expected)
    assert torch.equal(loss, expected) and loss.dtype == torch.float32 and wide.dtype == torch.float64
    torch.testing.assert_close(stacked, expected.expand(2))
    loss.backward()
    assert query.grad.dtype == torch.bfloat16


@each_backend("multi_queue_infonce")
def test_one_learnable_temperature_for_all_terms(backend: str, rng: torch.Generator) -> None:
    """A scalar tensor is the same as an entry for each term, and its gradient the sum of theirs."""
    rows, queue = (unit(rng, n, 16, backend=backend) for n in (6, 20))
    scalar = torch.tensor(0.2, device=rows.device, requires_grad=True)
    entries = torch.full((2,), 0.2, device=rows.device, requires_grad=True)
    ours, theirs = (
        multi_queue_infonce([rows, rows[:3]], [rows, rows[:3]], [queue], [0, 0], temperature=each, backend=backend)
        for each in (scalar, entries)
    )
    assert torch.equal(ours, theirs)
    (ours[0] + 3 * ours[1]).backward()
    (theirs[0] + 3 * theirs[1]).backward()
    torch.testing.assert_close(scalar.grad, entries.grad.sum())


@each_backend("multi_queue_infonce", but=("reference",))
@pytest.mark.parametrize("requires_grad", [False, True])
def test_vmap_is_refused(backend: str, requires_grad: bool, rng: torch.Generator) -> None:
    queries = unit(rng, 2, 4, 8, backend=backend).requires_grad_(requires_grad)
    queues = [unit(rng, 9, 8, backend=backend)]
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
