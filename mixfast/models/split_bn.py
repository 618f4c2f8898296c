"""Batch norm with several groups of samples per batch: what many small devices would compute, on one device."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from mixfast.errors import ConfigError
from mixfast.models.synced import synced_batch_norm
from mixfast.ops import split_batch_norm
from mixfast.world import current


def check_values(x: Tensor, num_splits: int = 1) -> None:
    """Raise ConfigError unless each group of [B, C, ...] has two numbers of a channel: one has no variance."""
    if x.numel() < 2 * num_splits * x.shape[1]:
        raise ConfigError(
            f"batch norm: training needs two numbers of each channel per group; got the shape {list(x.shape)} in "
            f"{num_splits} group{'s' * (num_splits > 1)}. Take a larger train.batch_size, or a smaller "
            "train.accumulate or model.bn_splits."
        )


class BatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d that names the options of a run where a training batch has one row."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            check_values(x)
            if current().size > 1:
                return synced_batch_norm(self, x, current())
        return super().forward(x)


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are taken within each group of samples n mod `num_splits`.

    Group s holds samples s, s + S, s + 2 S ..., as in MoCo's single-device recipe, so reversing the batch maps groups
    onto groups. Running statistics are the mean over the groups. In eval mode it is an ordinary BatchNorm2d, for any
    batch. State-dict keys and sizes are BatchNorm2d's.

    Input [B, C, H, W], B a multiple of `num_splits` while training; the output has the input's memory format.
    Parameters and buffers are float32, or float64 for float64 input. With one split it is PyTorch's own layer. Of
    several processes each has a share of the groups; a group of all samples is that of all processes.
    """

    def __init__(self, num_features: int, num_splits: int):
        super().__init__(num_features)
        self.num_splits = num_splits

    def forward(self, x: Tensor) -> Tensor:
        here = current()
        splits = self.num_splits if self.num_splits == 1 else self.num_splits // here.size  # in this process
        if self.training:
            check_values(x, splits)
            if self.num_splits == 1 and here.size > 1:
                return synced_batch_norm(self, x, here)
        if not self.training or self.num_splits == 1:
            return super().forward(x)
        if len(x) % splits:
            raise ConfigError(
                f"SplitBatchNorm2d: a training batch must be a multiple of the {splits} splits; got {len(x)} "
                "samples. Change train.batch_size, train.accumulate or model.bn_splits."
            )
        assert self.momentum is not None and self.num_batches_tracked is not None
        mean, var = self.running_mean, self.running_var
        if not self.track_running_stats:
            mean = var = None
        else:
            self.num_batches_tracked.add_(1)
        return split_batch_norm(
            *(x, self.weight, self.bias, mean, var), num_splits=splits, momentum=self.momentum, eps=self.eps
        )


def split_batch_norms_(module: nn.Module, num_splits: int, name: str) -> None:
    """Replace the BatchNorm2d layers inside `module` by `SplitBatchNorm2d` ones with their weights and options.

    Args:
        module: a network that is called `name` in messages.
        num_splits: groups of samples with separate statistics; with 1 nothing is replaced, unless there are several
            processes, whose statistics are to be one.

    Raises:
        ConfigError: there is no such layer, or one that does more or less than BatchNorm2d.
    """
    norms = {path: norm for path, norm in module.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    if num_splits == 1 and current().size == 1:
        return
    cure = "Give --model.bn_splits 1, for its norms as they are."
    if num_splits == 1:
        cure = "Train it with one process."
    elif not norms:
        raise ConfigError(
            f"model.bn_splits {num_splits} splits the statistics of BatchNorm2d layers, and {name} has none. {cure}"
        )
    for path, norm in norms.items():
        if type(norm) not in (nn.BatchNorm2d, SplitBatchNorm2d) or not norm.affine or norm.momentum is None:
            raise ConfigError(
                f"model.bn_splits {num_splits} cannot split {path} of {name}, a {type(norm).__name__} that is no plain "
                f"BatchNorm2d with weights and momentum. {cure}"
            )
        split = SplitBatchNorm2d(norm.num_features, num_splits)
        split.eps, split.momentum, split.track_running_stats = norm.eps, norm.momentum, norm.track_running_stats
        split.weight, split.bias = norm.weight, norm.bias
        for buffer in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(split, buffer, getattr(norm, buffer))
        parent, _, child = path.rpartition(".")
        setattr(module.get_submodule(parent), child, split)


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
