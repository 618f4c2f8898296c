"""multi_queue_infonce for the benchmarks: inputs of a case, mixfast's call, and other implementations of it."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast import multi_queue_infonce

TEMPERATURE = 0.1


class Case(NamedTuple):
    index: tuple[int, ...]  # the queue of each term
    rows: int  # of each term
    keys: int  # of each queue
    dim: int = 128

    def __str__(self) -> str:
        terms, queues = len(self.index), max(self.index) + 1
        counts = f"{terms} term{'s' * (terms > 1)}, {queues} queue{'s' * (queues > 1)}"
        return f"{counts}, B = {self.rows}, K = {self.keys}, D = {self.dim}"


class Inputs(NamedTuple):
    queries: list[Tensor]  # [rows, dim] for each term, requiring gradients
    positives: list[Tensor]
    queues: list[Tensor]
    index: tuple[int, ...]


def inputs(case: Case, dtype: torch.dtype = torch.float32, *, generator: torch.Generator) -> Inputs:
    """Unit rows."""

    def unit(count: int) -> Tensor:
        rows = torch.randn(count, case.dim, generator=generator, device=generator.device)
        return F.normalize(rows, dim=1).to(dtype)

    queries = [unit(case.rows).requires_grad_() for _ in case.index]
    positives = [unit(case.rows) for _ in case.index]
    return Inputs(queries, positives, [unit(case.keys) for _ in range(max(case.index) + 1)], case.index)


def with_gradients(losses: Callable[[Inputs], Tensor], data: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """A call that computes the sum of the losses and its gradients with respect to the queries."""
    return lambda: torch.autograd.grad(losses(data), data.queries)


def without_gradients(losses: Callable[[Inputs], Tensor], data: Inputs) -> Callable[[], Tensor]:
    detached = data._replace(queries=[query.detach() for query in data.queries])
    return lambda: losses(detached)


def by_mixfast(backend: str) -> Callable[[Inputs], Tensor]:
    return lambda data: multi_queue_infonce(
        data.queries, data.positives, data.queues, data.index, temperature=TEMPERATURE, backend=backend
    ).sum()


def eager(data: Inputs) -> Tensor:
    """Logits of every term, then cross entropy in float32, as training loops write it."""
    losses = []
    for query, positive, index in zip(data.queries, data.positives, data.index, strict=True):
        match = torch.einsum("nd,nd->n", query, positive)[:, None]
        logits = torch.cat([match, torch.einsum("nd,kd->nk", query, data.queues[index])], dim=1) / TEMPERATURE
        first = torch.zeros(len(query), dtype=torch.long, device=query.device)
        losses.append(F.cross_entropy(logits.float(), first))
    return torch.stack(losses).sum()


def products(data: Inputs) -> None:
    """The two matrix products that a loss with its gradient needs, and nothing else."""
    with torch.no_grad():
        for query, index in zip(data.queries, data.index, strict=True):
            torch.mm(torch.mm(query, data.queues[index].T), data.queues[index])


def attend(query: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Torch's fused attention with the queue as keys and values: mean keys [N, D], log sums [N] in float32."""
    q, k = query[None, None], queue[None, None]
    if query.device.type == "cpu":
        means, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, k, scale=1 / TEMPERATURE)
    elif query.dtype == torch.float32:  # flash attention takes 16 bits only
        means, sums = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, k, None, True, scale=1 / TEMPERATURE
        )[:2]
    else:
        means, sums = torch.ops.aten._scaled_dot_product_flash_attention(q, k, k, scale=1 / TEMPERATURE)[:2]
    return means[0, 0], sums[0, 0, : len(query)]


def attention(data: Inputs, *, share: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The sum of the losses and its gradients, from one pass of attention for each term, or with `share` each queue.

    loss = softplus(l - s), dq = p / tau (O - k) with p = sigmoid(l - s), the log sum l and the mean key O of attention.
    """
    terms = range(len(data.index))
    terms_by_queue = [[t for t in terms if data.index[t] == queue] for queue in sorted(set(data.index))]
    losses: list[Tensor] = []
    gradients: dict[int, Tensor] = {}
    with torch.no_grad():
        for job in terms_by_queue if share else [[t] for t in terms]:
            query, positive = (torch.cat([rows[t] for t in job]) for rows in (data.queries, data.positives))
            means, sums = attend(query, data.queues[data.index[job[0]]])
            margin = sums - (query.float() * positive.float()).sum(1) / TEMPERATURE
            losses.append(F.softplus(margin).sum())
            scale = torch.sigmoid(margin)[:, None] * (len(job) / (TEMPERATURE * len(query)))
            rows = (scale * (means.float() - positive.float())).to(query.dtype)
            gradients |= dict(zip(job, rows.chunk(len(job)), strict=True))
    return torch.stack(losses).sum() / len(data.queries[0]), tuple(gradients[t] for t in terms)


def inf_cl(data: Inputs) -> Tensor:
    """Inf-CL's log sum over the queue (Triton, float32 from any dtype), to which the positive is added outside."""
    log_sums = importlib.import_module("inf_cl.flash").FlashProb.apply
    losses = []
    for query, positive, index in zip(data.queries, data.positives, data.index, strict=True):
        query = query.float() / TEMPERATURE
        sums = log_sums(query[:, None], data.queues[index].float()[:, None])
        losses.append(F.softplus(sums - (query * positive.float()).sum(1)).mean())
    return torch.stack(losses).sum()


def lightly(data: Inputs) -> Callable[[Inputs], Tensor]:
    """lightly's NTXentLoss, one per queue, with the queue as its memory bank. In training it also enqueues its keys."""
    loss = importlib.import_module("lightly.loss")
    terms: list[Any] = []
    for queue in data.queues:
        terms.append(loss.NTXentLoss(temperature=TEMPERATURE, memory_bank_size=tuple(queue.shape)).to(queue.device))
        terms[-1].memory_bank(data.positives[0], update=True)  # makes the bank
        bank = terms[-1].memory_bank.bank
        bank.copy_(queue if bank.shape == queue.shape else queue.T)  # the layout differs between versions

    def losses(data: Inputs) -> Tensor:
        triples: Sequence[Any] = list(zip(data.queries, data.positives, data.index, strict=True))
        return torch.stack([terms[index](query, positive) for query, positive, index in triples]).sum()

    return losses


def lightly_in_batch() -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    """lightly's NTXentLoss without a memory bank, of two views."""
    loss = importlib.import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
    return lambda data: loss(*data)
