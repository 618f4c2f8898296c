"""split_batch_norm in training, forward and backward, alone and with sum and ReLU: against what else there is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixfast.ops import split_batch_norm

Leaves = tuple[Tensor, Tensor, Tensor]
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def draw(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Leaves, Tensor]:
    """x, weight and bias; upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = (
        torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=memory_format) for _ in range(2)
    )
    return (x.requires_grad_(), torch.ones(shape[1]).requires_grad_(), torch.zeros(shape[1]).requires_grad_()), upstream


def by_mixfast(channels: int, splits: int, backend: str) -> Layer:
    running = torch.zeros(channels), torch.ones(channels)
    return lambda *leaves: split_batch_norm(*leaves, *running, num_splits=splits, backend=backend)


def plain(channels: int) -> Layer:
    """Ordinary batch norm, over the whole batch."""
    running = torch.zeros(channels), torch.ones(channels)
    return lambda x, weight, bias: nn.functional.batch_norm(x, *running, weight, bias, True)


def chunked(channels: int, splits: int) -> Layer:
    """One call for each group, as a loop over devices would have it, and the outputs put together."""
    layers = [plain(channels) for _ in range(splits)]

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        groups = [run(x[s::splits], weight, bias) for s, run in enumerate(layers)]
        return torch.stack(groups, dim=1).flatten(0, 1)

    return layer


def with_gradients(layer: Layer, leaves: Leaves, upstream: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(layer(*leaves), leaves, upstream)


def fused(channels: int, splits: int, residual: Tensor | None) -> Layer:
    """Norm, sum unless there is no residual, and ReLU."""
    running = torch.zeros(channels), torch.ones(channels)
    return lambda *leaves: split_batch_norm(*leaves, *running, num_splits=splits, relu=True, residual=residual)


def followed(layer: Layer, residual: Tensor | None) -> Layer:
    """The same by operations that follow a norm."""

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = layer(x, weight, bias)
        return y.relu() if residual is None else (y + residual).relu_()

    return run


def copies(leaves: Leaves, upstream: Tensor) -> Callable[[], object]:
    """Each direction reads its maps and writes one."""
    x = leaves[0].detach()
    return lambda: (torch.empty_like(x).copy_(x), torch.add(x, upstream))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "contiguous"])
@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (64, 64, 8, 8), (64, 128, 4, 4)], ids=str)
def test_forward_and_backward(
    measure: Any, smoke: bool, shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    leaves, upstream = draw((16, 4, 3, 3) if smoke else shape, dtype, memory_format)
    channels = leaves[0].shape[1]
    layers = {
        "mixfast cpu, 8 groups": by_mixfast(channels, 8, "cpu"),
        "mixfast cpu, 1 group": by_mixfast(channels, 1, "cpu"),
        "ordinary batch norm": plain(channels),
        "view as more channels, 8 groups": by_mixfast(channels, 8, "reference"),
        "a call for each of 8 groups": chunked(channels, 8),
    }
    runs = {name: with_gradients(layer, leaves, upstream) for name, layer in layers.items()}
    runs["floor: a copy and a sum"] = copies(leaves, upstream)
    layout = "channels_last" if memory_format == torch.channels_last else "contiguous"
    measure(f"split_batch_norm, {'x'.join(map(str, shape))}, {layout}, {str(dtype).removeprefix('torch.')}", runs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("added", [False, True], ids=["relu", "sum-relu"])
@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (64, 128, 4, 4)], ids=str)
def test_with_relu(measure: Any, smoke: bool, shape: tuple[int, ...], added: bool, dtype: torch.dtype) -> None:
    """As in a residual network, whose maps are channels_last; gradients of the residual included."""
    leaves, upstream = draw((16, 4, 3, 3) if smoke else shape, dtype, torch.channels_last)
    channels, residual = leaves[0].shape[1], upstream.flip(0).requires_grad_() if added else None
    layers = {
        "mixfast cpu": fused(channels, 8, residual),
        "split_batch_norm, then torch": followed(by_mixfast(channels, 8, "cpu"), residual),
        "ordinary batch norm, then torch": followed(plain(channels), residual),
    }
    wanted = leaves if residual is None else (*leaves, residual)
    runs: dict[str, Callable[[], object]] = {
        name: lambda layer=layer: torch.autograd.grad(layer(*leaves), wanted, upstream)
        for name, layer in layers.items()
    }
    runs["floor: a copy and a sum"] = copies(leaves, upstream)
    title = f"split_batch_norm{', sum' if added else ''} and ReLU, {'x'.join(map(str, shape))}, channels_last"
    measure(f"{title}, {str(dtype).removeprefix('torch.')}", runs)


def test_peers_compute_the_same() -> None:
    leaves, _ = draw((16, 4, 3, 3), torch.float32, torch.channels_last)
    expected = by_mixfast(4, 8, "cpu")(*leaves)
    for peer in (by_mixfast(4, 8, "reference"), chunked(4, 8)):
        torch.testing.assert_close(peer(*leaves), expected)
    torch.testing.assert_close(plain(4)(*leaves), by_mixfast(4, 1, "cpu")(*leaves))
    for residual in (None, leaves[0].detach().flip(0)):
        one_by_one = followed(by_mixfast(4, 8, "cpu"), residual)
        torch.testing.assert_close(fused(4, 8, residual)(*leaves), one_by_one(*leaves), rtol=0, atol=0)
