"""Bootstrap intervals of a score over images, and its standard deviation over seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mixfast.rng import Generators

RESAMPLES = 1000
LEVEL = 0.95
Score = Callable[[Tensor], Tensor]


def resamples(count: int, seed: int = 0, number: int = RESAMPLES) -> Tensor:
    """float32 [number, count]: how often each of `count` images is drawn in each of `number` draws, which `seed`
    decides."""
    generator = Generators(seed)["bootstrap"]
    index = torch.randint(count, (number, count), generator=generator, device=generator.device)
    ones = torch.ones(number, count, dtype=torch.float32, device=generator.device)
    return torch.zeros_like(ones).scatter_add_(1, index, ones)


def interval(values: Tensor) -> tuple[float, float]:
    """Both ends of the central 95 % of values [R]."""
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(values.double(), values.new_tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def summary(per_run: Sequence[Tensor], score: Score, draws: Tensor) -> dict[str, Any]:
    """Mean score of several runs (seeds) on the same images, with its bootstrap interval.

    Args:
        per_run: for each run, its values for every image, [N, ...].
        score: maps weighted sums over images [R, ...] to scores [R]; the weights of a sum add up to N.
        draws: [R, N] from `resamples`.

    Returns:
        {"mean", "std", "low", "high", "values"}: mean and standard deviation over the runs (None for one run); interval
        of the mean for images drawn with replacement, the same for all runs; the score of each run.
    """
    values = [_scores(run, score, torch.ones_like(draws[:1])).item() for run in per_run]
    low, high = interval(_mean_scores(per_run, score, draws))
    std = torch.tensor(values, dtype=torch.float64, device="cpu").std().item() if len(values) > 1 else None
    return {"mean": sum(values) / len(values), "std": std, "low": low, "high": high, "values": values}


def margin(ours: Sequence[Tensor], theirs: Sequence[Tensor], score: Score, draws: Tensor) -> dict[str, float]:
    """Mean score of `ours` minus that of `theirs`, both as in `summary`: {"mean", "low", "high"}."""
    equal_weights = torch.ones_like(draws[:1])
    mean = (_mean_scores(ours, score, equal_weights) - _mean_scores(theirs, score, equal_weights)).item()
    low, high = interval(_mean_scores(ours, score, draws) - _mean_scores(theirs, score, draws))
    return {"mean": mean, "low": low, "high": high}


def _mean_scores(per_run: Sequence[Tensor], score: Score, draws: Tensor) -> Tensor:
    return torch.stack([_scores(run, score, draws) for run in per_run]).mean(0)


def _scores(values: Tensor, score: Score, weights: Tensor) -> Tensor:
    """[R]: the score of sums over images of values [N, ...] under weights [R, N]."""
    return score((weights @ values.reshape(len(values), -1)).view(len(weights), *values.shape[1:]))
