"""Batch norm with several groups of samples per batch: what many small devices would compute, on one device."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from mixfast.errors import ConfigError
from mixfast.ops import split_batch_norm


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are taken within each group of samples n mod `num_splits`.

    Group s holds samples s, s + S, s + 2 S ..., as in MoCo's single-device recipe, so reversing the batch maps groups
    onto groups. Running statistics are the mean over the groups. In eval mode it is an ordinary BatchNorm2d, for any
    batch. State-dict keys and sizes are BatchNorm2d's.

    Input [B, C, H, W], B a multiple of `num_splits` while training; the output has the input's memory format.
    Parameters and buffers are float32, or float64 for float64 input. With one split it is PyTorch's own layer.
    """

    def __init__(self, num_features: int, num_splits: int):
        super().__init__(num_features)
        self.num_splits = num_splits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.num_splits == 1:
            return super().forward(x)
        if len(x) % self.num_splits:
            raise ConfigError(
                f"SplitBatchNorm2d: a training batch must be a multiple of the {self.num_splits} splits; got {len(x)} "
                "samples. Change train.batch_size, train.accumulate or model.bn_splits."
            )
        assert self.momentum is not None and self.num_batches_tracked is not None
        mean, var = self.running_mean, self.running_var
        if not self.track_running_stats:
            mean = var = None
        else:
            self.num_batches_tracked.add_(1)
        return split_batch_norm(
            *(x, self.weight, self.bias, mean, var), num_splits=self.num_splits, momentum=self.momentum, eps=self.eps
        )


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within the block, batch norms still use their batch's statistics but leave the running ones as they are."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    norms = [m for m in module.modules() if isinstance(m, kinds) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
