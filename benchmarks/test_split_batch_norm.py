"""split_batch_norm in training, forward and backward, alone and with sum and ReLU: against what else there is."""

from typing import Any

import pytest
import torch

from benchmarks import norm
from benchmarks.norm import Inputs, by_mixfast, chunked, followed, ordinary

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
LAST = torch.channels_last


def draw(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, residual: bool) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return norm.inputs(shape, dtype, memory_format, residual=residual, generator=generator)


@DTYPES
@pytest.mark.parametrize("memory_format", [LAST, torch.contiguous_format], ids=["last", "contiguous"])
@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (64, 64, 8, 8), (64, 128, 4, 4)], ids=str)
def test_forward_and_backward(
    measure: Any, smoke: bool, shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    data = draw((16, 4, 3, 3) if smoke else shape, dtype, memory_format, False)
    layers = {
        "mixfast cpu, 8 groups": by_mixfast("cpu"),
        "mixfast cpu, 1 group": by_mixfast("cpu", 1),
        "ordinary batch norm": ordinary,
        "view as more channels, 8 groups": by_mixfast("reference"),
        "a call for each of 8 groups": chunked,
    }
    runs: dict[str, Any] = {name: norm.both(layer, data) for name, layer in layers.items()}
    runs["floor: a copy and a sum"] = norm.copies(data)
    layout = "channels_last" if memory_format == LAST else "contiguous"
    measure(f"split_batch_norm, {'x'.join(map(str, shape))}, {layout}, {str(dtype).removeprefix('torch.')}", runs)


@DTYPES
@pytest.mark.parametrize("added", [False, True], ids=["relu", "sum-relu"])
@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (64, 128, 4, 4)], ids=str)
def test_with_relu(measure: Any, smoke: bool, shape: tuple[int, ...], added: bool, dtype: torch.dtype) -> None:
    """As in a residual network, whose maps are channels_last; gradients of the residual included."""
    data = draw((16, 4, 3, 3) if smoke else shape, dtype, LAST, added)
    layers = {
        "mixfast cpu": by_mixfast("cpu", relu=True),
        "split_batch_norm, then torch": followed(by_mixfast("cpu")),
        "ordinary batch norm, then torch": followed(ordinary),
    }
    runs: dict[str, Any] = {name: norm.both(layer, data) for name, layer in layers.items()}
    runs["floor: a copy and a sum"] = norm.copies(data)
    title = f"split_batch_norm{', sum' if added else ''} and ReLU, {'x'.join(map(str, shape))}, channels_last"
    measure(f"{title}, {str(dtype).removeprefix('torch.')}", runs)


def test_peers_compute_the_same() -> None:
    data = draw((16, 4, 3, 3), torch.float32, LAST, False)
    expected = by_mixfast("cpu")(data)
    for peer in (by_mixfast("reference"), chunked):
        torch.testing.assert_close(peer(data), expected)
    torch.testing.assert_close(ordinary(data), by_mixfast("cpu", 1)(data))
    for residual in (None, data.x.detach().flip(0)):
        added = data._replace(residual=residual)
        one_by_one = followed(by_mixfast("cpu"))
        torch.testing.assert_close(by_mixfast("cpu", relu=True)(added), one_by_one(added), rtol=0, atol=0)
