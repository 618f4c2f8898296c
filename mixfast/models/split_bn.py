"""Batch norm with several groups of samples per batch: what many small devices would compute, on one device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixfast.errors import ConfigError
from mixfast.models.synced import synced_batch_norm
from mixfast.ops import split_batch_norm
from mixfast.world import current

Net = TypeVar("Net", bound=nn.Module)


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

    A second argument asks for ReLU after it, a third gives a residual to add before that: while statistics are split,
    all of it is one operation. `relu_of` calls it so.
    """

    def __init__(self, num_features: int, num_splits: int):
        super().__init__(num_features)
        self.num_splits = num_splits

    def forward(self, x: Tensor, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        here = current()
        splits = self.num_splits if self.num_splits == 1 else self.num_splits // here.size  # in this process
        if self.training:
            check_values(x, splits)
        if not self.training or self.num_splits == 1:
            synced = self.training and here.size > 1
            return _after(synced_batch_norm(self, x, here) if synced else super().forward(x), relu, residual)
        if len(x) % splits:
            raise ConfigError(
                f"SplitBatchNorm2d: a training batch must be a multiple of the {splits} splits; got {len(x)} "
                "samples. Change the batch (train.batch_size, train.accumulate) or the splits (model.bn_splits)."
            )
        assert self.momentum is not None and self.num_batches_tracked is not None
        mean, var = self.running_mean, self.running_var
        if not self.track_running_stats:
            mean = var = None
        else:
            self.num_batches_tracked.add_(1)
        return split_batch_norm(
            *(x, self.weight, self.bias, mean, var),
            num_splits=splits,
            momentum=self.momentum,
            eps=self.eps,
            relu=relu,
            residual=residual,
        )


def _after(y: Tensor, relu: bool, residual: Tensor | None) -> Tensor:
    """The sum and the ReLU that follow a batch norm, whose result stays as it is: a hook may have kept it."""
    if residual is not None:
        y = y + residual
    return F.relu(y, inplace=residual is not None) if relu else y


def relu_of(norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """relu(norm(x) + residual), as one operation unless a forward hook of `norm` is to see norm(x).

    Args:
        norm: a `SplitBatchNorm2d`, or a layer that was put in its place.
        x: [B, C, H, W].
        residual: like x, but may have another dtype, as under autocast; None: nothing is added.
    """
    alike = residual is None or residual.dtype == x.dtype
    if isinstance(norm, SplitBatchNorm2d) and alike and not norm._forward_hooks:
        return norm(x, True, residual)
    return _after(norm(x), True, residual)


def convert_split_bn(module: Net, splits: int, *, name: str = "the module") -> Net:
    """Make the BatchNorm2d layers of any network take their training statistics in `splits` groups of samples.

    What MoCo needs on one device in place of SyncBatchNorm or several devices: keys of a shuffled batch then meet other
    statistics than their queries. Group s holds samples s, s + S, s + 2 S ...; a training batch must be a multiple of
    S. In eval mode nothing changes. The layers stay the same objects, with their parameters, buffers, options and
    hooks, so optimisers and `state_dict()` notice nothing. Other layers, BatchNorm1d and 3d too, are left as they are.

    Args:
        module: changed in place; it may itself be a BatchNorm2d.
        splits: S, at least 1; 1 gives ordinary batch norm, also to layers that were converted before.
        name: what the module is called in messages.

    Returns:
        `module`.

    Raises:
        ConfigError: there is no BatchNorm2d, or one is of a class of its own (SyncBatchNorm, timm's BatchNormAct2d), or
            has no weights or no momentum. Nothing is converted then.
    """
    if splits < 1:
        raise ConfigError(f"convert_split_bn: splits must be at least 1; got {splits}.")
    kept = (nn.BatchNorm1d, nn.BatchNorm3d)
    norms = {path: norm for path, norm in module.named_modules() if isinstance(norm, _BatchNorm)}
    norms = {path: norm for path, norm in norms.items() if not isinstance(norm, kept)}
    if not norms:
        raise ConfigError(f"convert_split_bn splits the statistics of BatchNorm2d layers, and {name} has none.")
    for path, norm in norms.items():
        if type(norm) not in (nn.BatchNorm2d, SplitBatchNorm2d) or not norm.affine or norm.momentum is None:
            raise ConfigError(
                f"convert_split_bn cannot split {path or 'the whole'} of {name}, a {type(norm).__name__} that is no "
                "plain BatchNorm2d with weights and momentum."
            )
    for norm in norms.values():
        norm.__class__ = SplitBatchNorm2d
        cast(SplitBatchNorm2d, norm).num_splits = splits
    return module


def plain_batch_norms_(module: Net) -> Net:
    """`module` with torch.nn.BatchNorm2d for each `SplitBatchNorm2d` inside it; weights and statistics stay."""
    for path, norm in list(module.named_modules()):
        if isinstance(norm, SplitBatchNorm2d):
            plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
            plain.weight, plain.bias = norm.weight, norm.bias
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(plain, buffer, getattr(norm, buffer))
            parent, _, child = path.rpartition(".")
            setattr(module.get_submodule(parent), child, plain)
    return module


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
