"""split_batch_norm in training, forward and backward: eight groups and one, against what else there is."""

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


def test_peers_compute_the_same() -> None:
    leaves, _ = draw((16, 4, 3, 3), torch.float32, torch.channels_last)
    expected = by_mixfast(4, 8, "cpu")(*leaves)
    for peer in (by_mixfast(4, 8, "reference"), chunked(4, 8)):
        torch.testing.assert_close(peer(*leaves), expected)
    torch.testing.assert_close(plain(4)(*leaves), by_mixfast(4, 1, "cpu")(*leaves))
