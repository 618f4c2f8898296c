"""mixfast.adapters, forward and backward, beside the functions that they replace."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast import masked_upsample_pool
from mixfast.adapters import NTXentLoss, mocov2plus_loss_func, pool_boxes

DIM, TEMPERATURE = 128, 0.1
generator = torch.Generator().manual_seed(0)


def unit(count: int) -> Tensor:
    return F.normalize(torch.randn(count, DIM, generator=generator), dim=1)


@pytest.mark.parametrize("rows, keys", [(256, 4096), (256, 65536), (64, 65536)])
def test_memory_bank(measure: Any, smoke: bool, rows: int, keys: int) -> None:
    rows, keys = (8, 64) if smoke else (rows, keys)
    query, key = unit(rows).requires_grad_(), unit(rows)

    def run(loss: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(query, key), query)

    runs = {"mixfast NTXentLoss": run(NTXentLoss(TEMPERATURE, (keys, DIM)))}
    if importlib.util.find_spec("lightly"):  # which pip install mixfast[bench] brings
        lightly_loss = importlib.import_module("lightly.loss").NTXentLoss(TEMPERATURE, (keys, DIM))
        runs["lightly NTXentLoss"] = run(lightly_loss)
    measure(f"NTXentLoss with a memory bank, N = {rows}, K = {keys}, D = {DIM}", runs)


def written_out(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's loss from its logits, the queue as [D, K], as solo-learn computes it."""
    positive, negative = (query * key).sum(dim=1, keepdim=True), torch.einsum("nd,dk->nk", query, queue)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


@pytest.mark.parametrize("rows, keys", [(256, 4096), (256, 65536)])
def test_transposed_queue(measure: Any, smoke: bool, rows: int, keys: int) -> None:
    rows, keys = (8, 64) if smoke else (rows, keys)
    query, key, adjacent = unit(rows).requires_grad_(), unit(rows), unit(keys).T
    queue = adjacent.contiguous()

    def run(loss: Callable[..., Tensor], queue: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(query, key, queue, TEMPERATURE), query)

    measure(
        f"mocov2plus_loss_func, N = {rows}, K = {keys}, D = {DIM}",
        {
            "mixfast, queue [D, K]": run(mocov2plus_loss_func, queue),
            "mixfast, queue [K, D].T": run(mocov2plus_loss_func, adjacent),
            "logits, queue [D, K]": run(written_out, queue),
            "logits, queue [K, D].T": run(written_out, adjacent),
        },
    )


@pytest.mark.parametrize("batch, channels, side, boxes", [(16, 512, 7, 4), (8, 256, 14, 16)])
def test_several_boxes(measure: Any, smoke: bool, batch: int, channels: int, side: int, boxes: int) -> None:
    batch, channels, boxes = (2, 8, 3) if smoke else (batch, channels, boxes)
    features, size = torch.randn(batch, channels, side, side, generator=generator).requires_grad_(), (16 * side,) * 2
    corners = torch.rand(batch, boxes, 2, 2, generator=generator) * size[0]
    box_values = torch.cat([corners.amin(dim=2), corners.amax(dim=2) + 1], dim=-1).clamp(max=size[0])  # x0, y0, x1, y1
    whole_boxes = box_values.round().long()

    def repeated() -> tuple[Tensor, Tensor]:
        return masked_upsample_pool(features.repeat_interleave(boxes, dim=0), whole_boxes.flatten(0, 1), size)

    def upsampled() -> tuple[Tensor, ...]:
        large = F.interpolate(features, size, mode="bilinear")
        return tuple(
            image[:, y0:y1, x0:x1].mean(dim=(1, 2))
            for image, image_boxes in zip(large, whole_boxes.tolist(), strict=True)
            for x0, y0, x1, y1 in image_boxes
        )

    def run(pool: Callable[[], tuple[Tensor, ...]]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(torch.cat(pool()).sum(), features)

    measure(
        f"pool_boxes, [{batch}, {channels}, {side}, {side}], {boxes} boxes in each image of {size[0]} px",
        {
            "mixfast pool_boxes": run(lambda: pool_boxes(features, box_values, size)),
            "masked_upsample_pool of repeated features": run(repeated),
            "upsampled map, insides only": run(upsampled),
        },
    )
