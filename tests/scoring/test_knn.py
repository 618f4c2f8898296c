"""Weighted kNN against a plain loop in float64, and cases with known answers."""

import math

import pytest
import torch

from mixfast.scoring.features import Features
from mixfast.scoring.knn import accuracy, knn_predict, knn_score, knn_scores


def loop(queries: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, k: int, temperature: float) -> list[int]:
    """The definition: sort by (-similarity, index), add weights by class, the first largest sum wins."""
    unit = [row / row.norm() for row in bank.double()]
    answers = []
    for query in queries.double():
        similarity = [(query / query.norm() @ row).item() for row in unit]
        order = sorted(range(len(unit)), key=lambda j: (-similarity[j], j))[:k]
        scores = [0.0] * (int(labels.max()) + 1)
        for j in order:
            scores[labels[j]] += math.exp(similarity[j] / temperature)
        answers.append(scores.index(max(scores)))
    return answers


@pytest.mark.parametrize(
    ("rows", "dim", "k", "chunk"), [(50, 8, 7, 3), (50, 8, 50, None), (1, 3, 1, 1), (33, 1, 4, 64)]
)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_loop(
    rows: int, dim: int, k: int, chunk: int | None, temperature: float, rng: torch.Generator
) -> None:
    bank, queries = torch.randn(rows, dim, generator=rng), torch.randn(20, dim, generator=rng)
    labels = torch.randint(5, (rows,), generator=rng)
    predicted = knn_predict(queries, bank, labels, k=k, temperature=temperature, chunk=chunk)
    assert predicted.tolist() == loop(queries, bank, labels, k, temperature)


def test_one_hot_features_are_always_right_and_random_ones_by_chance(rng: torch.Generator) -> None:
    labels, answers = torch.arange(1000) % 10, torch.arange(500) % 10
    eye = torch.eye(10)
    assert knn_score(eye[labels], labels, eye[answers], answers, k=50, temperature=0.1) == 100.0
    noise = torch.randn(1000, 64, generator=rng), torch.randn(500, 64, generator=rng)
    # 500 trials at 10 %: 4 standard deviations are 5.4 points
    assert abs(knn_score(noise[0], labels, noise[1], answers, k=50, temperature=0.1) - 10) < 5.4


def test_equal_similarities_go_to_the_lower_index() -> None:
    bank = torch.ones(40, 2)
    labels = torch.tensor([1] * 3 + [0] * 37)
    assert knn_predict(torch.ones(5, 2), bank, labels, k=5).tolist() == [1] * 5  # rows 0-4: three of class 1
    assert knn_predict(torch.ones(5, 2), bank, labels, k=6).tolist() == [0] * 5  # a draw: the lower class
    bank[20] = torch.tensor([1.0, 1.0 + 1e-3])  # one row a little further away does not count before the equal ones
    assert knn_predict(torch.ones(1, 2), bank, labels, k=5).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_half_precision_features_do_not_overflow(dtype: torch.dtype, rng: torch.Generator) -> None:
    """exp(1 / 0.1) = 22,026 three times over is more than float16 holds."""
    bank = torch.randn(30, 4, generator=rng).to(dtype)
    labels = torch.randint(3, (30,), generator=rng)
    assert knn_predict(bank, bank, labels, k=20, temperature=0.1).tolist() == loop(bank, bank, labels, 20, 0.1)


def test_result_does_not_depend_on_the_chunk(rng: torch.Generator) -> None:
    bank, labels = torch.randn(300, 16, generator=rng), torch.randint(4, (300,), generator=rng)
    queries = torch.randn(70, 16, generator=rng)
    results = [knn_predict(queries, bank, labels, k=20, chunk=chunk).tolist() for chunk in (1, 7, 64, 1000, None)]
    assert all(result == results[0] for result in results)


def test_scores_of_both_features_and_small_banks() -> None:
    labels = torch.tensor([0, 1])
    good, bad = torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    scores = knn_scores(Features(good, good), labels, Features(good, bad), labels, k=200, temperature=0.1)
    assert scores == {"knn_z": 100.0, "knn_h": 0.0}
    assert accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0])) == 75.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"queries": torch.ones(2, 4)},
            r"queries must be \[M, D\] and bank \[N, D\] with one D; got \[2, 4\] and \[6, 3\]",
        ),
        ({"queries": torch.ones(3)}, r"got \[3\] and \[6, 3\]"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"labels must be \[6\] integers; got \[5\]"),
        ({"labels": torch.zeros(6)}, r"got \[6\] of torch.float32"),
        ({"k": 0}, r"k must be between 1 and the 6 rows of the bank; got 0"),
        ({"k": 7}, r"k must be between 1 and the 6 rows of the bank; got 7"),
        ({"temperature": 0.0}, r"temperature must be above 0; got 0.0"),
    ],
    ids=str,
)
def test_bad_arguments(changes: dict, message: str) -> None:
    good = {"queries": torch.ones(2, 3), "bank": torch.ones(6, 3), "labels": torch.zeros(6, dtype=torch.int64), "k": 2}
    with pytest.raises(ValueError, match=message):
        knn_predict(**{**good, **changes})
