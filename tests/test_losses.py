"""losses: the weighted sums of InfoNCE and NT-Xent terms against plain loops."""

import math

import pytest
import torch
from torch import Tensor

from mixfast import losses
from mixfast.losses import PairTerm, Term, infonce_sum, nt_xent_sum, unit


def rows(rng: torch.Generator, count: int, dim: int = 6) -> Tensor:
    return unit(torch.randn(count, dim, generator=rng, dtype=torch.float64))


def infonce_row(query: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> float:
    """One row by the textbook formula."""
    good = math.exp(float(query @ positive) / temperature)
    return -math.log(good / (good + sum(math.exp(float(query @ key) / temperature) for key in queue)))


def test_infonce_sum_equals_loops_for_all_kinds_of_weights(rng: torch.Generator) -> None:
    queues = {"a": rows(rng, 7), "b": rows(rng, 3)}
    q, k, own = [rows(rng, 4) for _ in range(4)], [rows(rng, 4) for _ in range(4)], rows(rng, 4)
    weight = torch.tensor([0.1, 0.2, 0.3, 0.9], dtype=torch.float64)
    terms = [
        Term("plain", q[0], k[0], "b"),
        Term("number", q[1], k[1], "a", 0.25),
        Term("per_row", q[2], k[2], "b", weight),
        Term("own_negative", q[3], k[3], "b", negative=own),
    ]
    loss, parts = infonce_sum(terms, queues, temperature=0.3)
    by_row = [[infonce_row(t.query[n], t.positive[n], queues[t.queue], 0.3) for n in range(4)] for t in terms[:3]]
    by_row += [[infonce_row(q[3][n], k[3][n], torch.cat([queues["b"], own[n : n + 1]]), 0.3) for n in range(4)]]
    weights = [[1.0] * 4, [0.25] * 4, weight.tolist(), [1.0] * 4]
    expected = sum(sum(w * r for w, r in zip(ws, rs, strict=True)) / 4 for ws, rs in zip(weights, by_row, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {t.name: sum(r) / 4 for t, r in zip(terms, by_row, strict=True)}, rel=1e-12
    )


def test_terms_may_have_rows_of_their_own_and_weights_of_no_dimension(rng: torch.Generator) -> None:
    """A dense term [B S] beside a global one [B]; each is a mean over its own rows."""
    queues = {"a": rows(rng, 7), "b": rows(rng, 3)}
    sizes = (4, 20, 1)
    queries, positives = [rows(rng, n).requires_grad_() for n in sizes], [rows(rng, n) for n in sizes]
    share = torch.tensor(0.4)  # float32, the rows are float64
    per_row = torch.rand(20, generator=rng, dtype=torch.float64)
    weights = (share, per_row, 3)
    terms = [Term(*parts) for parts in zip("xyz", queries, positives, "aba", weights, strict=True)]
    loss, parts = infonce_sum(terms, queues, temperature=0.3)
    expected, means = 0.0, {}
    for term, weight in zip(terms, ([share.item()] * 4, per_row.tolist(), [3.0]), strict=True):
        losses_ = [
            infonce_row(q, k, queues[term.queue], 0.3) for q, k in zip(term.query.detach(), term.positive, strict=True)
        ]
        means[term.name] = sum(losses_) / len(losses_)
        expected += sum(w * r for w, r in zip(weight, losses_, strict=True)) / len(losses_)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(means, rel=1e-12)
    loss.backward()
    alone = torch.autograd.grad(infonce_sum(terms[1:2], queues, 0.3)[0], queries[1])[0]
    torch.testing.assert_close(queries[1].grad, alone, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", [(3,), (4, 1), (1,)])
def test_a_weight_of_another_shape_is_refused(shape: tuple[int, ...], rng: torch.Generator) -> None:
    """Broadcasting would weigh every row with every weight."""
    q = rows(rng, 4)
    with pytest.raises(
        ValueError, match=r"Term.weight must be a number, .* \[4\]; got a tensor of shape \[" + str(shape[0])
    ):
        infonce_sum([Term("t", q, q, "a", torch.ones(shape))], {"a": rows(rng, 5)}, 0.1)


def test_nt_xent_sum_equals_loops_for_all_kinds_of_weights_and_lengths(rng: torch.Generator) -> None:
    views = [(rows(rng, n), rows(rng, n)) for n in (3, 3, 5, 2)]
    per_row = torch.rand(3, generator=rng, dtype=torch.float64)
    weights = (1.0, per_row, torch.tensor(0.25), 2)
    terms = [PairTerm(str(n), a, b, w) for n, ((a, b), w) in enumerate(zip(views, weights, strict=True))]
    loss, parts = nt_xent_sum(terms, temperature=0.5)
    expected = 0.0
    for term, weight in zip(terms, ([1.0] * 6, per_row.tolist() * 2, [0.25] * 10, [2.0] * 4), strict=True):
        both = torch.cat([term.first, term.second])
        anchors = []
        for n in range(len(both)):
            other = (n + len(both) // 2) % len(both)
            scores = [math.exp(float(both[n] @ both[m]) / 0.5) for m in range(len(both))]
            anchors.append(-math.log(scores[other] / (sum(scores) - scores[n])))
        assert parts[term.name].item() == pytest.approx(sum(anchors) / len(anchors), rel=1e-9)
        expected += sum(w * r for w, r in zip(weight, anchors, strict=True)) / len(anchors)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


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
