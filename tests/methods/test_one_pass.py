"""One pass: the loss by hand, and views of one colour each that show what a query is made of."""

import pytest
import torch
from torch import Tensor

from mixfast.augment import Views
from mixfast.methods import load
from mixfast.mix import box_mask
from mixfast.models import ModelConfig
from tests.methods.hand import BATCH, SIDE, build, double, infonce, mean, region_rows, rows, whole_crops


@pytest.mark.parametrize(("p_mix", "inside"), [(1.0, 3.0), (0.0, 1.0)])
def test_the_patch_shows_a_third_view(p_mix: float, inside: float) -> None:
    def augment(images: Tensor, count: int = 2) -> Views:
        return Views([torch.full(images.shape, 1.0 + n) for n in range(count)], whole_crops(images, count))

    method, generators = build(load("one_pass"), ModelConfig(depth=8, width=8, dim=6), 5, p_mix=p_mix)
    views = method.views(torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.uint8), augment, generators)
    box = box_mask(views["boxes_query"], (SIDE, SIDE))
    assert box.any() and not box.all() and views["key"].eq(2).all()
    assert torch.equal(views["query"], torch.where(box, inside, 1.0)[:, None].expand(-1, 3, -1, -1))


@torch.no_grad()
def test_loss_by_hand() -> None:
    method, generators, views = double(load("one_pass"), seed=1, weight=0.3)
    queue = method.queues.keys()["whole"]
    query, k = method.encoder(views["query"]), rows(method.key_encoder(views["key"]).z)
    qL, qG = region_rows(query.map, views["boxes_query"], method.encoder.head)
    whole, local, rest = (mean(infonce(vectors, k, queue)) for vectors in (rows(query.z), qL, qG))
    passes: list[int] = []
    for encoder in (method.encoder, method.key_encoder):
        encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(whole + 0.3 * (local + rest), rel=1e-7)
    assert [step.parts[name].item() for name in ("local", "global")] == pytest.approx([local, rest], rel=1e-7)
    torch.testing.assert_close(step.carry["whole"], torch.tensor(k, dtype=torch.float64), atol=1e-8, rtol=0)
    assert passes == [BATCH, BATCH], "MoCo's cost"
