"""losses: the weighted sum of InfoNCE terms against plain loops."""

import math

import pytest
import torch
from torch import Tensor

from mixfast import losses
from mixfast.losses import Term, infonce_sum, unit


def rows(rng: torch.Generator, count: int, dim: int = 6) -> Tensor:
    return unit(torch.randn(count, dim, generator=rng, dtype=torch.float64))


def infonce_row(query: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> float:
    """One row by the textbook formula."""
    good = math.exp(float(query @ positive) / temperature)
    return -math.log(good / (good + sum(math.exp(float(query @ key) / temperature) for key in queue)))


def test_infonce_sum_equals_loops_for_all_kinds_of_weights(rng: torch.Generator) -> None:
    queues = {"a": rows(rng, 7), "b": rows(rng, 3)}
    q, k = [rows(rng, 4) for _ in range(3)], [rows(rng, 4) for _ in range(3)]
    weight = torch.tensor([0.1, 0.2, 0.3, 0.9], dtype=torch.float64)
    terms = [
        Term("plain", q[0], k[0], "b"),
        Term("number", q[1], k[1], "a", 0.25),
        Term("per_row", q[2], k[2], "b", weight),
    ]
    loss, parts = infonce_sum(terms, queues, temperature=0.3)
    by_row = [[infonce_row(t.query[n], t.positive[n], queues[t.queue], 0.3) for n in range(4)] for t in terms]
    weights = [[1.0] * 4, [0.25] * 4, weight.tolist()]
    expected = sum(sum(w * r for w, r in zip(ws, rs, strict=True)) / 4 for ws, rs in zip(weights, by_row, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {t.name: sum(r) / 4 for t, r in zip(terms, by_row, strict=True)}, rel=1e-12
    )


def test_a_row_weight_of_zero_stops_that_row_alone(rng: torch.Generator) -> None:
    query = rows(rng, 3).requires_grad_()
    weight = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    infonce_sum([Term("t", query, rows(rng, 3), "a", weight)], {"a": rows(rng, 5)}, 0.1)[0].backward()
    assert query.grad is not None
    assert [bool(row.any()) for row in query.grad] == [True, False, True]


def test_all_terms_share_one_call_that_names_each_queue_once(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = losses.multi_queue_infonce

    def spy(queries, positives, queues, queue_index, **options):  # type: ignore[no-untyped-def]
        calls.append((len(queries), len(queues), list(queue_index)))
        return real(queries, positives, queues, queue_index, **options)

    monkeypatch.setattr(losses, "multi_queue_infonce", spy)
    queues = {name: rows(rng, 4) for name in ("whole", "unused", "local")}
    order = ["local", "whole", "local"]
    infonce_sum([Term(f"t{i}", rows(rng, 2), rows(rng, 2), name) for i, name in enumerate(order)], queues, 0.1)
    assert calls == [(3, 2, [0, 1, 0])]


def test_parts_carry_no_gradient(rng: torch.Generator) -> None:
    query = rows(rng, 3).requires_grad_()
    loss, parts = infonce_sum([Term("t", query, rows(rng, 3), "a")], {"a": rows(rng, 5)}, 0.1)
    assert loss.requires_grad
    assert not parts["t"].requires_grad


def test_unit_works_in_float32_for_short_types_and_keeps_float64(rng: torch.Generator) -> None:
    short = torch.randn(5, 128, generator=rng).to(torch.bfloat16)
    long = unit(short.double())
    assert unit(short).dtype == torch.float32
    torch.testing.assert_close(unit(short).double(), long, atol=1e-7, rtol=1e-6)
    assert long.dtype == torch.float64
    assert unit(torch.zeros(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
