"""Resampling counts images, intervals have their coverage, differences are paired over images."""

import pytest
import torch
from torch import Tensor

from mixfast.scoring import bootstrap


def mean(sums: Tensor) -> Tensor:
    return 100 * sums / 400


def test_resamples_draw_as_many_images_as_there_are() -> None:
    draws = bootstrap.resamples(50, seed=3, number=2000)
    assert draws.shape == (2000, 50) and (draws.sum(1) == 50).all()
    assert torch.equal(draws, bootstrap.resamples(50, seed=3, number=2000))
    assert not torch.equal(draws, bootstrap.resamples(50, seed=4, number=2000))
    # each image: mean 1, variance 1 - 1/50; 100,000 counts give a standard error of 0.003 and 0.006
    assert draws.mean().item() == 1 and abs(draws.var().item() - 0.98) < 0.03


def test_summary_of_a_share_has_the_binomial_interval(rng: torch.Generator) -> None:
    hits = (torch.arange(400) % 4 == 0).float()
    found = bootstrap.summary([hits], mean, bootstrap.resamples(400))
    assert found["mean"] == 25 and found["std"] is None and found["values"] == [25]
    # standard error sqrt(0.25 * 0.75 / 400) = 2.17 points; a quantile of 1000 draws is known to about a tenth of it
    assert found["low"] == pytest.approx(25 - 1.96 * 2.165, abs=0.8)
    assert found["high"] == pytest.approx(25 + 1.96 * 2.165, abs=0.8)


def test_summary_over_runs() -> None:
    runs = [torch.full((400,), value) for value in (0.2, 0.3, 0.7)]
    found = bootstrap.summary(runs, mean, bootstrap.resamples(400))
    assert found["mean"] == pytest.approx(40) and found["std"] == pytest.approx(26.4575, rel=1e-4)
    assert found["low"] == pytest.approx(40, abs=1e-3) and found["high"] == pytest.approx(40, abs=1e-3)


def test_scores_of_several_numbers_per_image() -> None:
    values = torch.stack([torch.ones(400, 3), torch.zeros(400, 3)], 1)
    found = bootstrap.summary([values], lambda sums: sums[:, 0].sum(1) - sums[:, 1].sum(1), bootstrap.resamples(400))
    assert found["mean"] == 1200 and found["low"] == 1200


def test_a_margin_is_narrower_than_its_sides(rng: torch.Generator) -> None:
    base = (torch.rand(400, generator=rng) < 0.5).float()
    better = base.clone()
    better[base.argmin()] = 1  # one more hit, and otherwise the same
    draws = bootstrap.resamples(400)
    found = bootstrap.margin([better, better], [base], mean, draws)
    assert found["mean"] == pytest.approx(0.25) and found["low"] == pytest.approx(0, abs=1e-4) and found["high"] <= 1
    side = bootstrap.summary([base], mean, draws)
    assert found["high"] - found["low"] < 0.15 * (side["high"] - side["low"])
    assert bootstrap.margin([base], [better], mean, draws)["mean"] == pytest.approx(-0.25)
