"""multi_queue_infonce, forward and backward: five terms over three queues, D = 128, against what else there is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mixfast
from mixfast import multi_queue_infonce

INDEX, QUEUES, DIM, TEMPERATURE = [0, 1, 2, 0, 1], 3, 128, 0.1
SHAPES = [(64, 4096), (512, 4096), (512, 65536)]  # rows of a term, keys of a queue
OURS = [name for name, reason in mixfast.backends()["multi_queue_infonce"].items() if reason is None]


class Inputs(NamedTuple):
    queries: list[Tensor]  # [rows, DIM] for each term, requiring gradients
    positives: list[Tensor]
    queues: list[Tensor]


def inputs(rows: int, keys: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def unit(count: int) -> Tensor:
        return F.normalize(torch.randn(count, DIM, generator=generator), dim=1)

    queries = [unit(rows).requires_grad_() for _ in INDEX]
    return Inputs(queries, [unit(rows) for _ in INDEX], [unit(keys) for _ in range(QUEUES)])


def with_gradients(losses: Callable[[Inputs], Tensor], given: Inputs) -> Callable[[], object]:
    """A call that computes the sum of the losses and its gradients with respect to the queries."""
    return lambda: torch.autograd.grad(losses(given), given.queries)


def eager(given: Inputs) -> Tensor:
    """Logits of every term, then cross entropy, as training loops write it."""
    losses = []
    for query, positive, index in zip(given.queries, given.positives, INDEX, strict=True):
        match = torch.einsum("nd,nd->n", query, positive)[:, None]
        logits = torch.cat([match, torch.einsum("nd,kd->nk", query, given.queues[index])], dim=1) / TEMPERATURE
        losses.append(F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long)))
    return torch.stack(losses).sum()


def attention(given: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """Torch's CPU flash attention with the queue as keys and values: losses, and gradients in the same pass."""
    losses, gradients = [], []
    with torch.no_grad():
        for query, positive, index in zip(given.queries, given.positives, INDEX, strict=True):
            keys = given.queues[index][None, None]
            mean, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[None, None], keys, keys, scale=1 / TEMPERATURE
            )
            margin = logsumexp[0, 0] - (query * positive).sum(1) / TEMPERATURE
            losses.append(F.softplus(margin).mean())
            share = torch.sigmoid(margin)[:, None] / (TEMPERATURE * len(query))
            gradients.append(share * (mean[0, 0] - positive))
    return losses, gradients


def products(given: Inputs) -> None:
    """The two matrix products that a loss with its gradient needs, and nothing else."""
    with torch.no_grad():
        for query, index in zip(given.queries, INDEX, strict=True):
            torch.mm(torch.mm(query, given.queues[index].T), given.queues[index])


def lightly_losses(given: Inputs) -> Callable[[Inputs], Tensor]:
    """lightly's NTXentLoss, one per queue, whose memory bank holds our keys."""
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install mixfast[bench]")
    terms: list[Any] = []
    for queue in given.queues:
        terms.append(loss.NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(len(queue), DIM)))
        terms[-1].memory_bank(given.positives[0], update=True)  # makes the bank
        bank = terms[-1].memory_bank.bank
        bank.copy_(queue if bank.shape == queue.shape else queue.T)  # the layout differs between versions

    def losses(given: Inputs) -> Tensor:
        each = zip(given.queries, given.positives, INDEX, strict=True)
        return torch.stack([terms[index](query, positive) for query, positive, index in each]).sum()

    return losses


def ours(backend: str) -> Callable[[Inputs], Tensor]:
    return lambda given: multi_queue_infonce(
        given.queries, given.positives, given.queues, INDEX, temperature=TEMPERATURE, backend=backend
    ).sum()


def compiled(smoke: bool) -> Callable[[Inputs], Tensor]:
    return torch.compile(eager, backend="aot_eager" if smoke else "inductor")


PEERS: dict[str, Callable[[Inputs, bool], Callable[[], object]]] = {
    "floor: two matrix products": lambda given, smoke: lambda: products(given),
    "flash attention with V = K": lambda given, smoke: lambda: attention(given),
    "eager": lambda given, smoke: with_gradients(eager, given),
    "torch.compile of eager": lambda given, smoke: with_gradients(compiled(smoke), given),
    "lightly NTXentLoss": lambda given, smoke: with_gradients(lightly_losses(given), given),
}


@pytest.mark.parametrize("implementation", [f"mixfast {name}" for name in OURS if name != "reference"] + list(PEERS))
@pytest.mark.parametrize(("rows", "keys"), SHAPES, ids=[f"{rows}x{keys}" for rows, keys in SHAPES])
def test_forward_and_backward(measure: Any, smoke: bool, implementation: str, rows: int, keys: int) -> None:
    rows, keys = (8, 64) if smoke else (rows, keys)
    given = inputs(rows, keys)
    kind, _, backend = implementation.partition(" ")
    run = with_gradients(ours(backend), given) if kind == "mixfast" else PEERS[implementation](given, smoke)
    measure(f"multi_queue_infonce, 5 terms, 3 queues, B = {rows}, K = {keys}, D = {DIM}", implementation, run)


def test_host_overhead(measure: Any) -> None:
    """So little work that what is measured is the way to the kernel and back."""
    given = inputs(1, 1)
    measure("multi_queue_infonce, host overhead (one row, one key)", "mixfast cpu", with_gradients(ours("cpu"), given))


def test_peers_compute_the_same() -> None:
    given = inputs(16, 100)
    expected = ours("reference")(given)
    gradients = torch.autograd.grad(expected, given.queries)
    losses, ours_too = attention(given)
    torch.testing.assert_close(torch.stack(losses).sum(), expected.detach())
    torch.testing.assert_close(ours_too, list(gradients), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(eager(given), expected)
