"""multi_queue_infonce under test: random input, the truth in float64, and calls on the backend's device."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mixfast
from tests import backends

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# rows of each term, queue of each term, keys of each queue, D, temperatures
CASES = {
    "one-row-one-key": ([1], [0], [1], 96, [0.1]),
    "one-term": ([33], [0], [257], 128, [0.2]),
    "ragged-shared-queues": ([5, 64, 1, 40, 7], [1, 0, 1, 2, 0], [130, 300, 9], 96, [0.1, 0.07, 0.5, 0.2, 1.0]),
    "eight-terms": ([3] * 8, [0, 1] * 4, [20, 1], 7, [0.1] * 8),
    "cold": ([17, 16], [0, 0], [500], 33, [0.01, 0.02]),
    "one-dimension": ([4, 2], [0, 1], [3, 5], 1, [0.3, 0.3]),
    "unused-queue": ([6], [1], [4, 129], 12, [0.1]),
    "several-chunks": ([20, 90], [0, 0], [3000], 16, [0.1, 0.05]),
}


def draw(case: tuple, dtype: torch.dtype, rng: torch.Generator, queue_dtype: torch.dtype | None = None) -> dict:
    rows, index, keys, dim, temperatures = case

    def unit(count: int) -> Tensor:
        vectors = torch.randn(count, dim, generator=rng, dtype=torch.float64)
        return F.normalize(vectors, dim=1) if dim > 1 else vectors  # one-dimensional unit vectors would all be equal

    queries = [unit(n) for n in rows]
    positives = [(q + 0.5 * unit(len(q))).to(dtype) for q in queries]
    queues = [unit(k).to(queue_dtype or dtype) for k in keys]
    return {
        "queries": [q.to(dtype) for q in queries],
        "positives": positives,
        "queues": queues,
        "queue_index": index,
        "temperature": temperatures,
    }


def loops(queries: list, positives: list, queues: list, queue_index: list, temperature: list) -> list[Tensor]:
    """The definition in plain float64 loops over rows, in a form that does not cancel; differentiable."""
    terms = []
    for query, positive, queue, tau in zip(queries, positives, queue_index, temperature, strict=True):
        rows = []
        for q, k in zip(query.double(), positive.double(), strict=True):
            negatives = torch.stack([(q * x).sum() / tau for x in queues[queue].double()])
            rows.append(F.softplus(torch.logsumexp(negatives, 0) - (q * k).sum() / tau, threshold=700))
        terms.append(torch.stack(rows))
    return terms


def truth(inputs: dict) -> list[Tensor]:
    """The same in float64 without the loops, to be fast; `test_truth_is_the_definition` compares the two."""
    terms = []
    for query, positive, queue, tau in zip(
        inputs["queries"], inputs["positives"], inputs["queue_index"], inputs["temperature"], strict=True
    ):
        negatives = torch.logsumexp(query.double() @ inputs["queues"][queue].double().T / tau, dim=1)
        match = (query.double() * positive.double()).sum(1) / tau
        terms.append(F.softplus(negatives - match, threshold=700))
    return terms


def gradients(inputs: dict, weights: list[Tensor], losses: Callable[[dict], list[Tensor]]) -> dict[str, Tensor]:
    """Row losses, and the gradients of sum(weight * loss) with respect to everything that has one."""
    tau = inputs["temperature"]
    tau = tau if isinstance(tau, Tensor) else torch.tensor(tau, dtype=torch.float64)
    leaves = {
        "queries": [q.clone().requires_grad_() for q in inputs["queries"]],
        "positives": [k.clone().requires_grad_() for k in inputs["positives"]],
        "temperature": tau.clone().requires_grad_(),
    }
    rows = losses({**inputs, **leaves})
    sum((w.to(r.dtype) * r).sum() for w, r in zip(weights, rows, strict=True)).backward()
    return {
        "loss": torch.cat(rows).detach(),
        "d_queries": torch.cat([q.grad for q in leaves["queries"]]),
        "d_positives": torch.cat([k.grad for k in leaves["positives"]]),
        "d_temperature": leaves["temperature"].grad,
    }


def weights_for(inputs: dict, rng: torch.Generator) -> list[Tensor]:
    return [torch.rand(len(q), generator=rng) - 0.3 for q in inputs["queries"]]


def place(backend: str, value: Any) -> Any:
    """Tensors, alone or in sequences, moved to the device of a backend; anything else as it is."""
    if not isinstance(value, (Tensor, str)) and isinstance(value, Iterable):
        return [place(backend, each) for each in value]
    return value.to(backends.device_of(backend)) if isinstance(value, Tensor) else value


def multi_queue_infonce(*args: Any, backend: str, **options: Any) -> Any:
    """The operation, called on the backend's device, with results on the CPU."""
    options = {name: place(backend, value) for name, value in options.items()}
    losses = mixfast.multi_queue_infonce(*place(backend, args), backend=backend, **options)
    return losses.cpu() if isinstance(losses, Tensor) else [loss.cpu() for loss in losses]


def skip_if_refused(backend: str, dtype: torch.dtype, queue_dtype: torch.dtype | None = None, dim: int = 1) -> None:
    """Skips the test if the backend refuses such a call."""
    backends.skip_if_refused("multi_queue_infonce", backend, dtype, queue_dtype or dtype, dim)


def row_losses(backend: str) -> Callable[[dict], list[Tensor]]:
    """What `gradients` differentiates."""
    return lambda inputs: multi_queue_infonce(**inputs, reduction="none", backend=backend)
