"""RegionCL: the loss by hand, and numbered images that show what a query is made of."""

import pytest
import torch
from torch import Tensor

from mixfast.augment import Views
from mixfast.errors import ConfigError
from mixfast.methods import load
from mixfast.models import ModelConfig
from tests.methods.hand import BATCH, SIDE, Rows, build, double, infonce, mean, region_rows, rows, whole_crops

MODEL = ModelConfig(depth=8, width=8, dim=6)


def test_the_first_half_gets_patches_of_the_last() -> None:
    def numbered(images: Tensor, count: int = 2) -> Views:
        numbers = torch.arange(10.0 * len(images), 11.0 * len(images))  # image n is 10 B + n, and its second view n
        views = [numbers, numbers - 10 * len(images)]
        return Views([view[:, None, None, None].expand(images.shape) for view in views], whole_crops(images, count))

    method, generators = build(load("regioncl"), MODEL, 3)
    views = method.views(torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.uint8), numbered, generators)
    boxes = views["boxes_query"].tolist()
    for n, image in enumerate(views["query"] - 10 * BATCH):
        x0, y0, x1, y1 = boxes[n]
        for y in range(SIDE):
            for x in range(SIDE):
                inside = x0 <= x < x1 and y0 <= y < y1
                assert image[:, y, x].tolist() == [BATCH - 1 - n if inside else n] * 3
        share = (x1 - x0) * (y1 - y0) / SIDE**2
        assert 0.14 < share < 0.56 if n < BATCH // 2 else share == 0  # 0.18 to 0.51, sides rounded to pixels
    assert len({tuple(box) for box in boxes}) > 2, "a box for each"
    assert views["key"][:, 0, 0, 0].tolist() == list(range(BATCH))


@torch.no_grad()
def test_loss_by_hand() -> None:
    method, generators, views = double(load("regioncl"), seed=2)
    half, queue = BATCH // 2, method.queues.keys()["whole"]
    query, k = method.encoder(views["query"]), rows(method.key_encoder(views["key"]).z)
    q = rows(query.z)
    qP, qC = region_rows(query.map[:half], views["boxes_query"][:half], method.encoder.head)

    def region(queries: Rows, positives: Rows, others: Rows) -> float:
        with_other = [torch.cat([queue, torch.tensor([other], dtype=torch.float64)]) for other in others]
        return mean([infonce([a], [b], c)[0] for a, b, c in zip(queries, positives, with_other, strict=True)])

    expected = mean(infonce(q[half:], k[half:], queue))
    expected += (region(qC, k[:half], qP) + region(qP, k[half:][::-1], qC)) / 2
    passes: list[int] = []
    for encoder in (method.encoder, method.key_encoder):
        encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(expected, rel=1e-7)
    torch.testing.assert_close(step.carry["whole"], torch.tensor(k, dtype=torch.float64), atol=1e-8, rtol=0)
    assert passes == [BATCH, BATCH], "MoCo's cost"


def test_a_region_is_pushed_from_the_other_one_that_stays_where_it_is() -> None:
    method, generators, views = double(load("regioncl"))
    negatives = {term.name: term.negative for term in method.step(views, generators).terms}
    assert negatives.pop("original") is None
    assert negatives and not any(negative.requires_grad for negative in negatives.values())


def test_a_range_from_high_to_low_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.area must be \(low, high\) with low <= high; got \(0.5, 0.2\)"):
        load("regioncl").Config(area=(0.5, 0.2))
